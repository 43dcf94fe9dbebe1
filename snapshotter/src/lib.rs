//! A layer's tar stream to an overlay directory while it arrives; overlay mounts.
