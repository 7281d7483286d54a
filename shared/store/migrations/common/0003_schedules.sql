-- Syncs and publishes that begin by themselves.
CREATE TABLE schedules (
    schedule_id TEXT NOT NULL PRIMARY KEY,
    repo_id TEXT NOT NULL,
    -- Whose it is: the repository's importer, or one of its distributors; it goes with that.
    importer_repo_id TEXT REFERENCES importers (repo_id) ON DELETE CASCADE,
    distributor_id TEXT,
    schedule TEXT NOT NULL,
    override_config TEXT NOT NULL,
    enabled BIGINT NOT NULL,
    failure_threshold BIGINT,
    consecutive_failures BIGINT NOT NULL,
    first_run BIGINT NOT NULL,
    last_run_at BIGINT,
    -- The first slot that was not fired; null beyond the calendar's end.
    next_slot BIGINT,
    -- Null means for ever.
    remaining_runs BIGINT,
    total_run_count BIGINT NOT NULL,
    created BIGINT NOT NULL,
    last_updated BIGINT NOT NULL,
    FOREIGN KEY (repo_id, distributor_id) REFERENCES distributors (repo_id, distributor_id) ON DELETE CASCADE,
    CHECK ((importer_repo_id IS NULL) <> (distributor_id IS NULL))
);
CREATE INDEX schedules_importer ON schedules (importer_repo_id);
CREATE INDEX schedules_distributor ON schedules (repo_id, distributor_id);
CREATE INDEX schedules_next ON schedules (next_slot) WHERE enabled = 1;

-- A slot is fired once, whoever fires it. The task may be one that waited already.
CREATE TABLE schedule_fires (
    schedule_id TEXT NOT NULL REFERENCES schedules (schedule_id) ON DELETE CASCADE,
    slot BIGINT NOT NULL,
    fired BIGINT NOT NULL,
    task_id TEXT NOT NULL,
    PRIMARY KEY (schedule_id, slot)
);
CREATE INDEX schedule_fires_task ON schedule_fires (task_id);
