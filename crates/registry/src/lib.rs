//! Distribution-spec client: references, auth, manifests, resumable blob streams.
