//! Content-addressed blobs: verified when they enter, never changed after.
