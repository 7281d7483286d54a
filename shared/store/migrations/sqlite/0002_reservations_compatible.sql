-- What the exclusion constraint is on PostgreSQL: no bug can commit a conflict of a shared with an exclusive
-- claim. One writer at a time makes a look at the other rows enough.
CREATE TRIGGER reservations_compatible BEFORE INSERT ON reservations
WHEN EXISTS (
    SELECT 1 FROM reservations other
    WHERE other.resource = NEW.resource AND (other.exclusive = 1 OR NEW.exclusive = 1)
)
BEGIN
    SELECT RAISE(ABORT, 'conflicts with reservations_compatible');
END;
