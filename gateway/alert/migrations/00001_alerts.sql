-- +goose Up
CREATE TABLE alert_owner (
  one INTEGER NOT NULL PRIMARY KEY, -- always 1
  id  TEXT    NOT NULL              -- of this database, among those that share a Redis
);

CREATE TABLE alert_crossings (
  id       TEXT    NOT NULL PRIMARY KEY, -- of quota, counter, period and percent
  quota    TEXT    NOT NULL,
  per      TEXT    NOT NULL,
  who      TEXT    NOT NULL,
  counter  TEXT    NOT NULL,
  unit     TEXT    NOT NULL,
  percent  INTEGER NOT NULL,
  severity INTEGER NOT NULL,
  used     BIGINT  NOT NULL,
  size     BIGINT  NOT NULL, -- the quota's limit
  ends_ms  BIGINT  NOT NULL, -- of the period
  zone     TEXT    NOT NULL,
  at_ms    BIGINT  NOT NULL, -- when it was seen
  state    TEXT    NOT NULL, -- noted: not known to be ours yet | ours | elsewhere
  UNIQUE (quota, counter, ends_ms, percent)
);
CREATE INDEX alert_crossings_ends ON alert_crossings (ends_ms);
CREATE INDEX alert_crossings_noted ON alert_crossings (at_ms) WHERE state = 'noted'; -- asked for every two seconds

CREATE TABLE alert_deliveries (
  crossing  TEXT    NOT NULL,
  channel   TEXT    NOT NULL,
  recipient TEXT    NOT NULL, -- empty where the channel has one
  state     TEXT    NOT NULL, -- pending | sent | given_up | dropped
  attempts  INTEGER NOT NULL,
  first_ms  BIGINT  NOT NULL, -- when it was tried first; 0: not yet
  tried_ms  BIGINT  NOT NULL, -- and last
  next_ms   BIGINT  NOT NULL, -- not before
  lease_ms  BIGINT  NOT NULL, -- until when it is the one's who tries it
  error     TEXT    NOT NULL, -- of the last try
  PRIMARY KEY (crossing, channel, recipient)
);
CREATE INDEX alert_deliveries_due ON alert_deliveries (channel, state, next_ms);

-- +goose Down
DROP TABLE alert_deliveries;
DROP TABLE alert_crossings;
DROP TABLE alert_owner;
