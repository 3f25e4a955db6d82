-- A department, project or user that is disabled keeps its keys, which are refused
-- meanwhile. One that is deleted keeps its row, for the history of its name; who has
-- the name next stands under next_name, which is the name with a number.

-- +goose Up
ALTER TABLE account_departments ADD COLUMN disabled_ms BIGINT NOT NULL DEFAULT 0;
ALTER TABLE account_departments ADD COLUMN deleted_ms BIGINT NOT NULL DEFAULT 0;
ALTER TABLE account_departments ADD COLUMN next_name TEXT NOT NULL DEFAULT '';
ALTER TABLE account_projects ADD COLUMN disabled_ms BIGINT NOT NULL DEFAULT 0;
ALTER TABLE account_projects ADD COLUMN deleted_ms BIGINT NOT NULL DEFAULT 0;
ALTER TABLE account_projects ADD COLUMN next_name TEXT NOT NULL DEFAULT '';
ALTER TABLE account_users ADD COLUMN disabled_ms BIGINT NOT NULL DEFAULT 0;
ALTER TABLE account_users ADD COLUMN deleted_ms BIGINT NOT NULL DEFAULT 0;
ALTER TABLE account_users ADD COLUMN next_name TEXT NOT NULL DEFAULT '';
CREATE INDEX account_users_project ON account_users (project);

-- Names that keys had before they were given others, and whose keys: nobody else's key
-- gets them, so that limits and usage by key stay apart.
CREATE TABLE account_key_names (
    name TEXT PRIMARY KEY,
    user_name TEXT NOT NULL
);

-- +goose Down
DROP TABLE account_key_names;
DROP INDEX account_users_project;
ALTER TABLE account_users DROP COLUMN next_name;
ALTER TABLE account_users DROP COLUMN deleted_ms;
ALTER TABLE account_users DROP COLUMN disabled_ms;
ALTER TABLE account_projects DROP COLUMN next_name;
ALTER TABLE account_projects DROP COLUMN deleted_ms;
ALTER TABLE account_projects DROP COLUMN disabled_ms;
ALTER TABLE account_departments DROP COLUMN next_name;
ALTER TABLE account_departments DROP COLUMN deleted_ms;
ALTER TABLE account_departments DROP COLUMN disabled_ms;
