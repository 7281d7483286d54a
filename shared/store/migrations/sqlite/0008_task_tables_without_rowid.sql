-- What every task writes to is kept as few trees as can be: a table that is little more than its key is the tree of
-- that key, and what has not ended is in no index of ends.

CREATE TABLE task_tags_by_key (
    tag TEXT NOT NULL,
    task_id TEXT NOT NULL REFERENCES tasks (task_id) ON DELETE CASCADE,
    PRIMARY KEY (tag, task_id)
) WITHOUT ROWID;
INSERT INTO task_tags_by_key SELECT tag, task_id FROM task_tags;
DROP TABLE task_tags;
ALTER TABLE task_tags_by_key RENAME TO task_tags;
CREATE INDEX task_tags_task ON task_tags (task_id);

CREATE TABLE task_resources_by_key (
    task_id TEXT NOT NULL REFERENCES tasks (task_id) ON DELETE CASCADE,
    resource TEXT NOT NULL,
    exclusive BIGINT NOT NULL,
    created BIGINT NOT NULL,
    PRIMARY KEY (task_id, resource)
) WITHOUT ROWID;
INSERT INTO task_resources_by_key SELECT task_id, resource, exclusive, created FROM task_resources;
DROP TABLE task_resources;
ALTER TABLE task_resources_by_key RENAME TO task_resources;
CREATE INDEX task_resources_line ON task_resources (resource, created);

CREATE TABLE reservations_by_key (
    resource TEXT NOT NULL,
    task_id TEXT NOT NULL REFERENCES tasks (task_id) ON DELETE CASCADE,
    exclusive BIGINT NOT NULL,
    place BIGINT NOT NULL,
    granted BIGINT NOT NULL,
    PRIMARY KEY (resource, task_id)
) WITHOUT ROWID;
INSERT INTO reservations_by_key SELECT resource, task_id, exclusive, place, granted FROM reservations;
DROP TABLE reservations;
ALTER TABLE reservations_by_key RENAME TO reservations;
CREATE INDEX reservations_task ON reservations (task_id);
CREATE UNIQUE INDEX reservations_one_exclusive ON reservations (resource) WHERE exclusive = 1;
CREATE TRIGGER reservations_compatible BEFORE INSERT ON reservations
WHEN EXISTS (
    SELECT 1 FROM reservations other
    WHERE other.resource = NEW.resource AND (other.exclusive = 1 OR NEW.exclusive = 1)
)
BEGIN
    SELECT RAISE(ABORT, 'conflicts with reservations_compatible');
END;

DROP INDEX tasks_finished;
CREATE INDEX tasks_finished ON tasks (finished) WHERE finished IS NOT NULL;
