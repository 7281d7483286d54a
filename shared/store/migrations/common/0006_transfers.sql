-- Exports for closed networks: what was exported last, and the state that was imported last. A repository that never
-- was either has no row.
CREATE TABLE transfers (
    repo_id TEXT NOT NULL PRIMARY KEY REFERENCES repositories (repo_id) ON DELETE CASCADE,
    exported_version BIGINT,
    imported_state TEXT
);
