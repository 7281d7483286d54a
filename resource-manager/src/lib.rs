//! Leads by lease, serialises locks per repository, grants tasks.
