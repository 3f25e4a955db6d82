-- Times are milliseconds since 1970 in UTC; 0 is never. A name is unique within its
-- kind, so that limits and usage can go by it.

-- +goose Up
CREATE TABLE account_feed (one INTEGER PRIMARY KEY CHECK (one = 1), seq BIGINT NOT NULL);
INSERT INTO account_feed (one, seq) VALUES (1, 0);

CREATE TABLE account_departments (
    name TEXT PRIMARY KEY,
    created_ms BIGINT NOT NULL
);

CREATE TABLE account_projects (
    name TEXT PRIMARY KEY,
    department TEXT NOT NULL REFERENCES account_departments (name),
    created_ms BIGINT NOT NULL
);

CREATE TABLE account_users (
    name TEXT PRIMARY KEY,
    project TEXT NOT NULL REFERENCES account_projects (name),
    created_ms BIGINT NOT NULL
);

-- models and ips are JSON lists. replaced_by names the key that took this one's
-- name; only one key of a name is not replaced.
CREATE TABLE account_keys (
    id TEXT PRIMARY KEY,
    name TEXT NOT NULL,
    user_name TEXT NOT NULL REFERENCES account_users (name),
    hash TEXT NOT NULL UNIQUE,
    models TEXT NOT NULL,
    ips TEXT NOT NULL,
    tier TEXT NOT NULL,
    max_level INTEGER NOT NULL,
    admin BOOLEAN NOT NULL,
    created_ms BIGINT NOT NULL,
    expires_ms BIGINT NOT NULL,
    revoked_ms BIGINT NOT NULL,
    replaced_by TEXT NOT NULL
);
CREATE UNIQUE INDEX account_keys_name ON account_keys (name) WHERE replaced_by = '';
CREATE INDEX account_keys_names ON account_keys (name);
CREATE INDEX account_keys_user ON account_keys (user_name);

CREATE TABLE account_overrides (
    scope TEXT NOT NULL,
    name TEXT NOT NULL,
    rule TEXT NOT NULL,
    numbers TEXT NOT NULL,
    PRIMARY KEY (scope, name, rule)
);

-- id is the value of account_feed.seq after the change: no gaps, no two alike, and
-- whoever sees one sees all before it.
CREATE TABLE account_audit (
    id BIGINT PRIMARY KEY,
    at_ms BIGINT NOT NULL,
    who TEXT NOT NULL,
    what TEXT NOT NULL,
    subject TEXT NOT NULL,
    was TEXT NOT NULL,
    became TEXT NOT NULL
);

-- +goose Down
DROP TABLE account_audit;
DROP TABLE account_overrides;
DROP TABLE account_keys;
DROP TABLE account_users;
DROP TABLE account_projects;
DROP TABLE account_departments;
DROP TABLE account_feed;
