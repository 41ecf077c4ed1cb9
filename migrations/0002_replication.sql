-- A volume that a failover could not move: it is served from this site although its backend is active
-- elsewhere. Cinder's own columns have no place for it.
CREATE TABLE IF NOT EXISTS scoria_strays (
  volume_id VARCHAR(36) NOT NULL,
  -- 'default' or a backend_id
  site VARCHAR(255) NOT NULL,
  recorded_at DATETIME(6) NOT NULL,
  PRIMARY KEY (volume_id)
) ENGINE=InnoDB DEFAULT CHARSET=utf8mb4 COLLATE=utf8mb4_bin;

-- What a failover put into 'error' because it stayed behind, as it was before: a failback restores it.
CREATE TABLE IF NOT EXISTS scoria_displaced (
  -- 'volume' or 'snapshot'
  resource_type VARCHAR(16) NOT NULL,
  resource_id VARCHAR(36) NOT NULL,
  status VARCHAR(255) NOT NULL,
  replication_status VARCHAR(255) NULL,
  recorded_at DATETIME(6) NOT NULL,
  PRIMARY KEY (resource_type, resource_id)
) ENGINE=InnoDB DEFAULT CHARSET=utf8mb4 COLLATE=utf8mb4_bin;
