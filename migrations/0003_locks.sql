-- Which member of a Cinder cluster works on a resource. A lock holds as long as its owner, an instance of the
-- service, has open operations of the cluster: an instance that died loses its locks with its operations.
CREATE TABLE IF NOT EXISTS scoria_locks (
  -- cluster@backend
  cluster VARCHAR(255) NOT NULL,
  -- as Cinder's coordination locks: <id>, <id>-delete_volume, <id>-delete_snapshot …
  name VARCHAR(128) NOT NULL,
  owner VARCHAR(36) NOT NULL,
  acquired_at DATETIME(6) NOT NULL,
  PRIMARY KEY (cluster, name)
) ENGINE=InnoDB DEFAULT CHARSET=utf8mb4 COLLATE=utf8mb4_bin;
