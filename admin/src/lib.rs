//! pulp-admin: the command line client.
