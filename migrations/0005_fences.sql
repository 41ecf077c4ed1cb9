-- Clients that an operator, or a failover, keeps out of a site that volumes have left: who, because of which volume,
-- and until when. An empty address is a fence that is wanted and not laid yet.
CREATE TABLE IF NOT EXISTS scoria_fences (
  -- host@backend, or cluster@backend when clustered
  backend VARCHAR(255) NOT NULL,
  -- 'default' or a backend_id
  site VARCHAR(255) NOT NULL,
  volume_id VARCHAR(36) NOT NULL,
  -- ip:port/nonce, as the blocklist of the site names it; or ''
  address VARCHAR(128) NOT NULL,
  -- noted: forced away, its failover is not over; wanted: to be laid; laid
  state VARCHAR(16) NOT NULL,
  -- how long the blocklist keeps an entry
  seconds INT NOT NULL,
  -- as the cluster says it
  expires VARCHAR(64) NULL,
  -- when the site answered for the first time since it is wanted
  answered_at DATETIME(6) NULL,
  recorded_at DATETIME(6) NOT NULL,
  PRIMARY KEY (backend, site, volume_id, address)
) ENGINE=InnoDB DEFAULT CHARSET=utf8mb4 COLLATE=utf8mb4_bin;
