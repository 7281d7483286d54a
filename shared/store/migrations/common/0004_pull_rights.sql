-- Credentials of programs, which may pull and do nothing else.
CREATE TABLE robots (
    name TEXT NOT NULL PRIMARY KEY,
    description TEXT NOT NULL,
    -- SHA-256 of a secret made at random; a slow hash would add nothing.
    secret_hash TEXT NOT NULL,
    created BIGINT NOT NULL,
    -- Null means never.
    expires BIGINT
);

-- Who may pull from a repository while it is protected. A right goes with its repository, user or robot.
CREATE TABLE pull_rights (
    repo_id TEXT NOT NULL REFERENCES repositories (repo_id) ON DELETE CASCADE,
    -- The login, or `robot+<name>`.
    puller TEXT NOT NULL,
    login TEXT REFERENCES users (login) ON DELETE CASCADE,
    robot TEXT REFERENCES robots (name) ON DELETE CASCADE,
    granted BIGINT NOT NULL,
    PRIMARY KEY (repo_id, puller),
    CHECK ((login IS NULL) <> (robot IS NULL))
);
CREATE INDEX pull_rights_puller ON pull_rights (puller);
CREATE INDEX pull_rights_login ON pull_rights (login);
CREATE INDEX pull_rights_robot ON pull_rights (robot);
