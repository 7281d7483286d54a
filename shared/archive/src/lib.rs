//! Readers of docker save, OCI layout and skopeo dir tars; the export writer.
