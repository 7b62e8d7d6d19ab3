// Asking the server: JSON bodies, answers as server-sent events, the API key where one is wanted.

const KEY = "branchwork-key";

export class Refused extends Error {
  constructor(status, message) {
    super(message);
    this.status = status;
  }
}

export function useKey(key) {
  sessionStorage.setItem(KEY, key);
}

// Calls heard(name, value) for every event until the stream ends. Throws Refused for an error response.
export async function events(path, { body, signal, heard }) {
  const key = sessionStorage.getItem(KEY);
  const headers = key ? { authorization: `Bearer ${key}` } : {};
  const asked = { headers, signal };
  if (body !== undefined) {
    Object.assign(asked, { method: "POST", body: JSON.stringify(body) });
    headers["content-type"] = "application/json";
  }
  const answer = await fetch(path, asked);
  if (!answer.ok) throw new Refused(answer.status, await reason(answer));
  const reader = answer.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) return;
    const parts = (rest + value).split("\n\n");
    rest = parts.pop();
    for (const part of parts) tell(part, heard);
  }
}

function tell(part, heard) {
  let name = "";
  let data = "";
  for (const line of part.split("\n")) {
    if (line.startsWith("event: ")) name = line.slice(7);
    if (line.startsWith("data: ")) data += line.slice(6);
  }
  if (data && data !== "[DONE]") heard(name, JSON.parse(data));
}

async function reason(answer) {
  const text = await answer.text();
  try {
    return JSON.parse(text).error.message;
  } catch {
    return text || `status ${answer.status}`;
  }
}
