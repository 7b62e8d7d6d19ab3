"""Model families of the hot path, one file each, and the registry that names them."""
