-- What registries let us ask, as they told it last; all workers share it. Spans and instants in microseconds.
CREATE TABLE upstream_budgets (
    host TEXT NOT NULL,
    -- The login there, or empty.
    account TEXT NOT NULL,
    -- Null where no limit was told.
    capacity BIGINT,
    -- Millionths of a request that were left at `as_of`.
    level BIGINT,
    as_of BIGINT,
    -- One of them: the window in which all come back evenly, or the instant at which they come back at once.
    refill_window BIGINT,
    resets_at BIGINT,
    blocked_until BIGINT,
    PRIMARY KEY (host, account)
);

-- Who downloads what, so that nobody else does. It counts as long as that worker lives.
CREATE TABLE downloads (
    digest TEXT NOT NULL PRIMARY KEY,
    host TEXT NOT NULL,
    worker_name TEXT NOT NULL,
    incarnation TEXT NOT NULL,
    begun BIGINT NOT NULL
);
CREATE INDEX downloads_host ON downloads (host);

-- Locked while downloads of a host are counted.
CREATE TABLE upstream_hosts (
    host TEXT NOT NULL PRIMARY KEY
);

-- Images of version 1 whose files a sync has brought here that is not at its end yet, by upstream and repository there:
-- without digests nothing else would tell the next try of that sync.
CREATE TABLE v1_downloads (
    upstream TEXT NOT NULL,
    image_id TEXT NOT NULL,
    -- The unit that it will be.
    fields TEXT NOT NULL,
    at BIGINT NOT NULL,
    PRIMARY KEY (upstream, image_id)
);
CREATE INDEX v1_downloads_at ON v1_downloads (at);
