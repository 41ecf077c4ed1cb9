-- A drill of a failover: the clone of one volume's copy on another site. The row is there before the clone, and
-- goes when the clone and the snapshot that it hangs on are gone.
CREATE TABLE IF NOT EXISTS scoria_tests (
  test_id VARCHAR(36) NOT NULL,
  volume_id VARCHAR(36) NOT NULL,
  -- host@backend or cluster@backend
  backend VARCHAR(255) NOT NULL,
  -- where the volume was served, and where the clone is ('' until that is known): 'default' or a backend_id
  source VARCHAR(255) NOT NULL,
  site VARCHAR(255) NOT NULL,
  pool VARCHAR(255) NOT NULL,
  image VARCHAR(255) NOT NULL,
  clone_pool VARCHAR(255) NOT NULL,
  clone VARCHAR(255) NOT NULL,
  snapshot VARCHAR(255) NOT NULL,
  -- 1: the snapshot was taken for the drill, and goes with it
  own_snapshot TINYINT(1) NOT NULL,
  -- making, taken, cloning, ready, failed, removing
  state VARCHAR(16) NOT NULL,
  size BIGINT NOT NULL,
  -- UTC
  point_in_time DATETIME(6) NULL,
  detail TEXT NULL,
  created_at DATETIME(6) NOT NULL,
  PRIMARY KEY (test_id, volume_id),
  KEY backend (backend)
) ENGINE=InnoDB DEFAULT CHARSET=utf8mb4 COLLATE=utf8mb4_bin;

-- The schedule of mirror snapshots that an image was given on a site, so that one which nobody asks for any more
-- can be told from one that an operator has made by hand.
CREATE TABLE IF NOT EXISTS scoria_schedules (
  volume_id VARCHAR(36) NOT NULL,
  -- 'default' or a backend_id
  site VARCHAR(255) NOT NULL,
  schedule VARCHAR(64) NOT NULL,
  recorded_at DATETIME(6) NOT NULL,
  PRIMARY KEY (volume_id, site)
) ENGINE=InnoDB DEFAULT CHARSET=utf8mb4 COLLATE=utf8mb4_bin;
