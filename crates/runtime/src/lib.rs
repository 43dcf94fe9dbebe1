//! OCI runtime spec from image and request, and the shim that holds a running container.
