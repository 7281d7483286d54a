-- Behind the lock table stands the database: a shared claim occupies its own point of the resource's line, an
-- exclusive one the whole line, and no two may overlap. No bug, second manager or hand-written statement can
-- commit a conflict. btree_gist is a trusted extension: the database's owner may create it.
CREATE EXTENSION IF NOT EXISTS btree_gist;

ALTER TABLE reservations ADD COLUMN span int8range NOT NULL GENERATED ALWAYS AS (
    CASE WHEN exclusive = 1 THEN int8range(NULL, NULL) ELSE int8range(place, place, '[]') END
) STORED;

ALTER TABLE reservations ADD CONSTRAINT reservations_compatible
    EXCLUDE USING gist (resource WITH =, span WITH &&);

-- Rows of these two live for milliseconds; vacuum them early, or every poll walks the dead.
ALTER TABLE outbox SET (autovacuum_vacuum_scale_factor = 0.0, autovacuum_vacuum_threshold = 1000);
ALTER TABLE reservations SET (autovacuum_vacuum_scale_factor = 0.0, autovacuum_vacuum_threshold = 1000);
