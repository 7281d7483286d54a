//! The registry that clients pull from; reads published files only.
