-- What a run notes for the attempts after it, should it be lost. Goes when the task is over.
CREATE TABLE task_journals (
    task_id TEXT NOT NULL PRIMARY KEY REFERENCES tasks (task_id) ON DELETE CASCADE,
    written BIGINT NOT NULL,
    note TEXT NOT NULL
);
