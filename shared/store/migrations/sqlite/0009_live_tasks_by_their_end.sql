-- What has not ended is found by that, and not by its state, which changes three times in a task's life, and each time
-- would move it in the index.
DROP INDEX tasks_live;
CREATE INDEX tasks_live ON tasks (created) WHERE finished IS NULL;

-- A trigger refuses what this index did when a reservation is made, and another when one is changed, which nobody does.
DROP INDEX reservations_one_exclusive;
CREATE TRIGGER reservations_compatible_as_changed BEFORE UPDATE ON reservations
WHEN EXISTS (
    SELECT 1 FROM reservations other
    WHERE other.resource = NEW.resource AND other.task_id <> OLD.task_id AND (other.exclusive = 1 OR NEW.exclusive = 1)
)
BEGIN
    SELECT RAISE(ABORT, 'conflicts with reservations_compatible');
END;
