-- A model's level that an operator has pinned. It holds before until_ms, whether the
-- row is still there then or not.

-- +goose Up
CREATE TABLE account_pins (
    model TEXT PRIMARY KEY,
    level INTEGER NOT NULL,
    until_ms BIGINT NOT NULL,
    why TEXT NOT NULL,
    who TEXT NOT NULL,
    since_ms BIGINT NOT NULL
);

-- +goose Down
DROP TABLE account_pins;
