"""Vertex AI and LiteLLM as backends, through the endpoints of theirs that speak OpenAI's API.

Knows: where those endpoints are and what they need. Must not know: requests, how programs are run.
"""

from __future__ import annotations

import os
from typing import Any

from branchwork.lang.backends.openai import OpenAI
from branchwork.lang.errors import BackendError


class VertexAI(OpenAI):
    """Programs on a model of Vertex AI, such as "google/gemini-2.5-flash" ("gemini-..." is taken for Google's).

    project, location: of Google Cloud; GCP_PROJECT_ID and GCP_LOCATION by default. api_key: an access token
    (`gcloud auth print-access-token`; it lasts an hour), or an async function that gives a fresh one.
    Other arguments are OpenAI's. Raises BackendError for what is missing.
    """

    def __init__(
        self,
        model_name: str,
        *,
        project: str | None = None,
        location: str | None = None,
        api_key: Any = None,
        **client_args: Any,
    ) -> None:
        project = project or os.environ.get("GCP_PROJECT_ID")
        location = location or os.environ.get("GCP_LOCATION")
        if "base_url" not in client_args:
            if not project or not location:
                raise BackendError("VertexAI needs project= and location= (or GCP_PROJECT_ID and GCP_LOCATION)")
            host = "aiplatform.googleapis.com" if location == "global" else f"{location}-aiplatform.googleapis.com"
            path = f"v1/projects/{project}/locations/{location}/endpoints/openapi"
            client_args["base_url"] = f"https://{host}/{path}"
        if api_key is None:
            raise BackendError(
                "VertexAI needs api_key=: an access token (`gcloud auth print-access-token`), or an async function "
                "that gives one"
            )
        model_name = f"google/{model_name}" if model_name.startswith("gemini") else model_name
        super().__init__(model_name, True, api_key=api_key, **client_args)


class LiteLLM(OpenAI):
    """Programs on a model behind a LiteLLM proxy. base_url: the proxy's; LITELLM_PROXY_API_BASE by default.

    api_key: the proxy's; LITELLM_PROXY_API_KEY by default. Other arguments are OpenAI's. The litellm package, which
    calls the providers from this process, is not used. Raises BackendError without a base_url.
    """

    def __init__(
        self, model_name: str, *, base_url: str | None = None, api_key: str | None = None, **client_args: Any
    ) -> None:
        base_url = base_url or os.environ.get("LITELLM_PROXY_API_BASE")
        if not base_url:
            raise BackendError(
                "LiteLLM talks to a LiteLLM proxy (`litellm --model ...` starts one); pass its base_url=, or set "
                "LITELLM_PROXY_API_BASE. A provider with an OpenAI-compatible API needs no proxy: bw.OpenAI(base_url=)"
            )
        # a proxy without a master key takes any
        api_key = api_key or os.environ.get("LITELLM_PROXY_API_KEY") or "none"
        super().__init__(model_name, base_url=base_url, api_key=api_key, **client_args)
