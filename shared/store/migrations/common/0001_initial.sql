-- Common subset of PostgreSQL and SQLite: only TEXT and BIGINT columns. Instants are microseconds since 1970 in
-- UTC; JSON is text; booleans are 0 or 1.

CREATE TABLE repositories (
    repo_id TEXT NOT NULL PRIMARY KEY,
    display_name TEXT NOT NULL,
    description TEXT,
    notes TEXT NOT NULL,
    scratchpad TEXT NOT NULL,
    version BIGINT NOT NULL,
    created BIGINT NOT NULL,
    last_unit_added BIGINT,
    last_unit_removed BIGINT
);

CREATE TABLE repository_versions (
    repo_id TEXT NOT NULL REFERENCES repositories (repo_id) ON DELETE CASCADE,
    number BIGINT NOT NULL,
    created BIGINT NOT NULL,
    task_id TEXT,
    added BIGINT NOT NULL,
    removed BIGINT NOT NULL,
    scratchpad_tags TEXT NOT NULL,
    PRIMARY KEY (repo_id, number)
);

CREATE TABLE importers (
    repo_id TEXT NOT NULL PRIMARY KEY REFERENCES repositories (repo_id) ON DELETE CASCADE,
    importer_type_id TEXT NOT NULL,
    config TEXT NOT NULL,
    last_sync BIGINT,
    last_updated BIGINT NOT NULL
);

CREATE TABLE distributors (
    repo_id TEXT NOT NULL REFERENCES repositories (repo_id) ON DELETE CASCADE,
    distributor_id TEXT NOT NULL,
    distributor_type_id TEXT NOT NULL,
    config TEXT NOT NULL,
    auto_publish BIGINT NOT NULL,
    last_publish BIGINT,
    last_updated BIGINT NOT NULL,
    -- What the last publish was made of; another fingerprint means there is something to publish.
    published_fingerprint TEXT,
    -- The registry id under which the last publish went out, to find two repositories that claim one.
    published_registry_id TEXT,
    -- The repository version and the publication that it made: from these the next publish goes on.
    published_version BIGINT,
    published_id TEXT,
    PRIMARY KEY (repo_id, distributor_id)
);
CREATE INDEX distributors_published_registry_id ON distributors (published_registry_id);

CREATE TABLE units (
    unit_id TEXT NOT NULL PRIMARY KEY,
    unit_type_id TEXT NOT NULL,
    identity TEXT NOT NULL,
    fields TEXT NOT NULL,
    created BIGINT NOT NULL,
    UNIQUE (unit_type_id, identity)
);

-- What a unit is made of: manifest -> config and layers, list -> members, tag -> manifest, image -> parent.
-- The child is named by its identity, since a parent may come before it or without it.
CREATE TABLE unit_edges (
    parent_unit_id TEXT NOT NULL REFERENCES units (unit_id) ON DELETE CASCADE,
    role TEXT NOT NULL,
    child_identity TEXT NOT NULL,
    PRIMARY KEY (parent_unit_id, role, child_identity)
);
CREATE INDEX unit_edges_child ON unit_edges (child_identity);

CREATE TABLE repository_units (
    repo_id TEXT NOT NULL REFERENCES repositories (repo_id) ON DELETE CASCADE,
    unit_id TEXT NOT NULL REFERENCES units (unit_id),
    added_in BIGINT NOT NULL,
    removed_in BIGINT,
    created BIGINT NOT NULL,
    updated BIGINT NOT NULL,
    -- Of a list: members that this repository need not have. One that changes is another row, as a change of content.
    absent TEXT,
    -- Of a list: which upstream index it was made of.
    made_from TEXT,
    PRIMARY KEY (repo_id, unit_id, added_in)
);
-- A unit is in a repository's newest version at most once.
CREATE UNIQUE INDEX repository_units_current ON repository_units (repo_id, unit_id) WHERE removed_in IS NULL;
CREATE INDEX repository_units_unit ON repository_units (unit_id);
-- What changed between two versions is found without looking at what did not.
CREATE INDEX repository_units_added ON repository_units (repo_id, added_in);
CREATE INDEX repository_units_removed ON repository_units (repo_id, removed_in) WHERE removed_in IS NOT NULL;

CREATE TABLE tasks (
    task_id TEXT NOT NULL PRIMARY KEY,
    kind TEXT NOT NULL,
    -- The name within `kind` and the version of its arguments: who can run it is decided by them.
    kind_name TEXT NOT NULL,
    task_type TEXT NOT NULL,
    schema_version BIGINT NOT NULL,
    -- For whom: `user:<login>`, `scheduler` or `system`.
    owner TEXT NOT NULL,
    -- Its place in a trace: what W3C calls traceparent and tracestate.
    traceparent TEXT,
    tracestate TEXT,
    class TEXT NOT NULL,
    state TEXT NOT NULL,
    tags TEXT NOT NULL,
    group_id TEXT,
    parent_id TEXT,
    restartable BIGINT NOT NULL,
    attempt BIGINT NOT NULL,
    -- How many of its attempts were lost with their worker. Not those handed back in order.
    lost BIGINT NOT NULL,
    -- How many grants were declined by a worker that could not read it.
    declined BIGINT NOT NULL,
    -- Not granted before this instant.
    not_before BIGINT,
    -- Whether others pass it until then.
    steps_aside BIGINT NOT NULL DEFAULT 0,
    epoch BIGINT,
    worker_name TEXT,
    incarnation TEXT,
    created BIGINT NOT NULL,
    accepted BIGINT,
    -- When the grant was last sent again.
    resent BIGINT,
    started BIGINT,
    -- When its progress last changed.
    progressed BIGINT,
    finished BIGINT,
    cancel_requested BIGINT,
    progress_report TEXT NOT NULL,
    result TEXT,
    error TEXT,
    spawned_tasks TEXT NOT NULL
);
-- Partial, so that they stay as small as the live work, whatever history there is.
CREATE INDEX tasks_live ON tasks (state, created) WHERE state IN ('waiting', 'accepted', 'running');
CREATE INDEX tasks_live_worker ON tasks (worker_name) WHERE state = 'running';
CREATE INDEX tasks_children ON tasks (parent_id) WHERE parent_id IS NOT NULL;
CREATE INDEX tasks_group ON tasks (group_id) WHERE group_id IS NOT NULL;
CREATE INDEX tasks_finished ON tasks (finished);
CREATE INDEX tasks_created ON tasks (created);

CREATE TABLE task_tags (
    tag TEXT NOT NULL,
    task_id TEXT NOT NULL REFERENCES tasks (task_id) ON DELETE CASCADE,
    PRIMARY KEY (tag, task_id)
);
CREATE INDEX task_tags_task ON task_tags (task_id);

-- The last request of each scope that waits and may stand for the next one like it.
CREATE TABLE open_requests (
    scope TEXT NOT NULL PRIMARY KEY,
    options TEXT NOT NULL,
    repo_id TEXT NOT NULL,
    task_id TEXT NOT NULL
);
CREATE INDEX open_requests_repo ON open_requests (repo_id);
CREATE INDEX open_requests_task ON open_requests (task_id);

-- What befell a task beyond the straight way, which its own columns tell: attempts that came to nothing, and why.
CREATE TABLE task_events (
    task_id TEXT NOT NULL REFERENCES tasks (task_id) ON DELETE CASCADE,
    at BIGINT NOT NULL,
    event TEXT NOT NULL,
    attempt BIGINT NOT NULL,
    worker_name TEXT,
    detail TEXT
);
CREATE INDEX task_events_task ON task_events (task_id);

-- What a task needs, from its birth.
CREATE TABLE task_resources (
    task_id TEXT NOT NULL REFERENCES tasks (task_id) ON DELETE CASCADE,
    resource TEXT NOT NULL,
    exclusive BIGINT NOT NULL,
    -- The task's: its place in the resource's line.
    created BIGINT NOT NULL,
    PRIMARY KEY (task_id, resource)
);
CREATE INDEX task_resources_line ON task_resources (resource, created);

-- What a task holds, from grant to end.
CREATE TABLE reservations (
    resource TEXT NOT NULL,
    task_id TEXT NOT NULL REFERENCES tasks (task_id) ON DELETE CASCADE,
    exclusive BIGINT NOT NULL,
    -- A number of the task's own; see the exclusion constraint of PostgreSQL.
    place BIGINT NOT NULL,
    granted BIGINT NOT NULL,
    PRIMARY KEY (resource, task_id)
);
CREATE INDEX reservations_task ON reservations (task_id);
CREATE UNIQUE INDEX reservations_one_exclusive ON reservations (resource) WHERE exclusive = 1;

CREATE TABLE workers (
    name TEXT NOT NULL PRIMARY KEY,
    role TEXT NOT NULL,
    incarnation TEXT NOT NULL,
    started BIGINT NOT NULL,
    last_heartbeat BIGINT NOT NULL,
    expires BIGINT NOT NULL,
    -- JSON: tasks that it runs at once, a class; kinds that it can run, with the largest schema version.
    slots TEXT NOT NULL,
    supports TEXT NOT NULL
);

CREATE TABLE leases (
    role TEXT NOT NULL PRIMARY KEY,
    holder TEXT NOT NULL,
    epoch BIGINT NOT NULL,
    acquired BIGINT NOT NULL,
    expires BIGINT NOT NULL
);

CREATE TABLE outbox (
    id TEXT NOT NULL PRIMARY KEY,
    queue TEXT NOT NULL,
    body TEXT NOT NULL,
    traceparent TEXT,
    tracestate TEXT,
    created BIGINT NOT NULL
);

CREATE TABLE uploads (
    upload_id TEXT NOT NULL PRIMARY KEY,
    login TEXT NOT NULL,
    size BIGINT NOT NULL,
    created BIGINT NOT NULL,
    updated BIGINT NOT NULL
);

CREATE TABLE publish_history (
    id TEXT NOT NULL PRIMARY KEY,
    repo_id TEXT NOT NULL,
    distributor_id TEXT NOT NULL,
    distributor_type_id TEXT NOT NULL,
    started BIGINT NOT NULL,
    completed BIGINT NOT NULL,
    result TEXT NOT NULL,
    summary TEXT NOT NULL,
    details TEXT NOT NULL,
    error_message TEXT
);
CREATE INDEX publish_history_distributor ON publish_history (repo_id, distributor_id, started);

CREATE TABLE sync_history (
    id TEXT NOT NULL PRIMARY KEY,
    repo_id TEXT NOT NULL,
    importer_id TEXT NOT NULL,
    importer_type_id TEXT NOT NULL,
    started BIGINT NOT NULL,
    completed BIGINT NOT NULL,
    result TEXT NOT NULL,
    added_count BIGINT NOT NULL,
    updated_count BIGINT NOT NULL,
    removed_count BIGINT NOT NULL,
    summary TEXT NOT NULL,
    details TEXT NOT NULL,
    -- What was planned and what it cost.
    report TEXT NOT NULL,
    error_message TEXT
);
CREATE INDEX sync_history_repository ON sync_history (repo_id, started);

CREATE TABLE users (
    login TEXT NOT NULL PRIMARY KEY,
    name TEXT NOT NULL,
    password_hash TEXT NOT NULL,
    roles TEXT NOT NULL,
    created BIGINT NOT NULL
);

CREATE TABLE sessions (
    token_hash TEXT NOT NULL PRIMARY KEY,
    login TEXT NOT NULL REFERENCES users (login) ON DELETE CASCADE,
    created BIGINT NOT NULL,
    expires BIGINT NOT NULL
);
