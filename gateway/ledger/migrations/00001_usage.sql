-- +goose Up
CREATE TABLE usage_records (
  id          TEXT    NOT NULL PRIMARY KEY, -- of the request
  at          BIGINT  NOT NULL,             -- when it began, in milliseconds since 1970
  department  TEXT    NOT NULL,
  project     TEXT    NOT NULL,
  user_name   TEXT    NOT NULL,
  key_name    TEXT    NOT NULL,
  asked       TEXT    NOT NULL,             -- the model as the caller named it
  model       TEXT    NOT NULL,             -- the model that was served
  level       INTEGER NOT NULL,             -- of degradation, 0 to 4
  status      INTEGER NOT NULL,             -- of HTTP; 499: the caller left
  input       BIGINT  NOT NULL,             -- tokens, cached ones included
  cached      BIGINT  NOT NULL,
  output      BIGINT  NOT NULL,             -- tokens, reasoning ones included
  reasoning   BIGINT  NOT NULL,
  estimated   INTEGER NOT NULL,             -- 1: the tokens are an estimate
  milliunits  BIGINT  NOT NULL,             -- thousandths of a quota unit
  queue_ms    BIGINT  NOT NULL,
  ttft_ms     BIGINT  NOT NULL,             -- 0: not known
  took_ms     BIGINT  NOT NULL,
  gpu_ms      BIGINT  NOT NULL              -- 0: not known
);
CREATE INDEX usage_records_at ON usage_records (at);

CREATE TABLE usage_sums (
  quarter     BIGINT  NOT NULL, -- of an hour: its begin, in seconds since 1970
  department  TEXT    NOT NULL,
  project     TEXT    NOT NULL,
  user_name   TEXT    NOT NULL,
  key_name    TEXT    NOT NULL,
  model       TEXT    NOT NULL,
  requests    BIGINT  NOT NULL,
  failed      BIGINT  NOT NULL,
  input       BIGINT  NOT NULL,
  cached      BIGINT  NOT NULL,
  output      BIGINT  NOT NULL,
  reasoning   BIGINT  NOT NULL,
  estimated   BIGINT  NOT NULL,
  milliunits  BIGINT  NOT NULL,
  gpu_ms      BIGINT  NOT NULL,
  PRIMARY KEY (quarter, department, project, user_name, key_name, model)
);
CREATE INDEX usage_sums_user ON usage_sums (user_name, quarter);
CREATE INDEX usage_sums_project ON usage_sums (project, quarter);
CREATE INDEX usage_sums_key ON usage_sums (key_name, quarter);
CREATE INDEX usage_sums_department ON usage_sums (department, quarter);

CREATE TABLE usage_segments (
  id          TEXT    NOT NULL PRIMARY KEY, -- of a journal's segment
  shipped     BIGINT  NOT NULL,             -- bytes of it whose records are here
  at          BIGINT  NOT NULL              -- when, in milliseconds since 1970
);

-- +goose Down
DROP TABLE usage_segments;
DROP TABLE usage_sums;
DROP TABLE usage_records;
