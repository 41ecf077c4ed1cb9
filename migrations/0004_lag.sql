-- How far behind each copy of a mirrored volume was when its site was last asked: what Ceph told, read by
-- `scoria-manage replication lag` and compared with by the next look.
CREATE TABLE IF NOT EXISTS scoria_replication_lag (
  volume_id VARCHAR(36) NOT NULL,
  -- where the copy is: 'default' or a backend_id
  site VARCHAR(255) NOT NULL,
  -- whose volume: host@backend or cluster@backend
  backend VARCHAR(255) NOT NULL,
  -- journal, snapshot; NULL while no report has told it
  mode VARCHAR(16) NULL,
  -- rbd-mirror's word, or: down, missing, not-mirrored, unknown
  state VARCHAR(32) NOT NULL,
  message VARCHAR(255) NULL,
  -- the copy has all that was written until then
  last_sync DATETIME(6) NULL,
  lag_seconds BIGINT NULL,
  entries_behind BIGINT NULL,
  bytes_behind BIGINT NULL,
  bytes_per_second BIGINT NULL,
  percent INT NULL,
  rpo_seconds BIGINT NULL,
  breached TINYINT(1) NOT NULL,
  -- what is wrong with the copy; and what has been seen once only
  fault VARCHAR(16) NULL,
  suspected VARCHAR(16) NULL,
  -- journal: when the copy has replayed this, it has all that was written until mark_at
  mark_tag BIGINT NULL,
  mark_entry BIGINT NULL,
  mark_at DATETIME(6) NULL,
  -- by the clocks of the sites
  reported_at DATETIME(6) NULL,
  watched_since DATETIME(6) NOT NULL,
  polled_at DATETIME(6) NOT NULL,
  PRIMARY KEY (volume_id, site),
  KEY scoria_replication_lag_backend (backend, polled_at)
) ENGINE=InnoDB DEFAULT CHARSET=utf8mb4 COLLATE=utf8mb4_bin;

-- When the sites of a backend were last asked, so that one member of a Cinder cluster asks for all (site ''), and
-- what became of it.
CREATE TABLE IF NOT EXISTS scoria_replication_polls (
  backend VARCHAR(255) NOT NULL,
  site VARCHAR(255) NOT NULL,
  polled_at DATETIME(6) NOT NULL,
  -- when it last answered; NULL: never
  answered_at DATETIME(6) NULL,
  problem VARCHAR(255) NULL,
  PRIMARY KEY (backend, site)
) ENGINE=InnoDB DEFAULT CHARSET=utf8mb4 COLLATE=utf8mb4_bin;
