-- The rbd-mirror daemons that Scoria has to do with: one a site and host, by what means it runs, and whether it is to.
CREATE TABLE IF NOT EXISTS scoria_mirror_daemons (
  fsid VARCHAR(36) NOT NULL,
  -- [DEFAULT] host of the service that looks after it
  host VARCHAR(255) NOT NULL,
  -- orchestrator, systemd, child
  means VARCHAR(16) NOT NULL,
  -- cephx user without 'client.' that the daemon runs as; for an orchestrator: by which it was asked
  client VARCHAR(255) NOT NULL,
  -- orchestrator: placement; systemd: unit
  what TEXT NOT NULL,
  -- running, stopped
  wanted VARCHAR(16) NOT NULL,
  -- the operation that has last started, restarted or stopped it: a daemon of an older one is replaced
  generation BIGINT NOT NULL,
  -- of a child, as its service saw it last: starting, running, waiting (for its next start), stopping, stopped
  state VARCHAR(16) NOT NULL,
  pid BIGINT NULL,
  -- how often it has ended by itself since it was started by command
  ended INT NOT NULL,
  -- the last lines of its log, when it has ended by itself
  detail TEXT NULL,
  changed_at DATETIME(6) NOT NULL,
  PRIMARY KEY (fsid, host)
) ENGINE=InnoDB DEFAULT CHARSET=utf8mb4 COLLATE=utf8mb4_bin;
