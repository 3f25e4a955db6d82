-- Keys that expire soon are looked up every minute.

-- +goose Up
CREATE INDEX account_keys_expires ON account_keys (expires_ms);

-- +goose Down
DROP INDEX account_keys_expires;
