-- What has not ended is found by that, and not by its state, which changes three times in a task's life, and each time
-- would move it in the index.
DROP INDEX tasks_live;
CREATE INDEX tasks_live ON tasks (created) WHERE finished IS NULL;

-- The trigger refuses these, too.
DROP INDEX reservations_one_exclusive;
