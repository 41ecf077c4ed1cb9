-- The journal: one row per accepted operation. No foreign keys, neither to Cinder's tables
-- (`cinder-manage db purge` must not meet them) nor between these.
CREATE TABLE IF NOT EXISTS scoria_operations (
  id BIGINT NOT NULL AUTO_INCREMENT,
  -- oslo.messaging's _unique_id: a message delivered twice is refused here
  unique_id VARCHAR(64) NOT NULL,
  method VARCHAR(64) NOT NULL,
  -- host@backend that accepted it, and cluster@backend when clustered
  backend_host VARCHAR(255) NOT NULL,
  cluster VARCHAR(255) NULL,
  resource_type VARCHAR(40) NULL,
  resource_id VARCHAR(36) NULL,
  -- the inner message as JSON, without the token
  request MEDIUMTEXT NOT NULL,
  reply_queue VARCHAR(255) NULL,
  reply_msg_id VARCHAR(64) NULL,
  -- the caller's timeout, by the clock of the database
  deadline DATETIME(6) NULL,
  -- open, closed
  state VARCHAR(16) NOT NULL,
  -- succeeded, failed, rolled-back, abandoned
  outcome VARCHAR(16) NULL,
  outcome_detail TEXT NULL,
  -- the reply document, kept until it was sent
  reply MEDIUMTEXT NULL,
  replied_at DATETIME(6) NULL,
  -- who works on it: an instance of the service, and the host it ran on
  owner VARCHAR(36) NOT NULL,
  owner_host VARCHAR(255) NOT NULL,
  -- grows with every change of owner; whoever writes must know it
  epoch BIGINT NOT NULL,
  lease_until DATETIME(6) NOT NULL,
  accepted_at DATETIME(6) NOT NULL,
  updated_at DATETIME(6) NOT NULL,
  closed_at DATETIME(6) NULL,
  PRIMARY KEY (id),
  UNIQUE KEY scoria_operations_unique_id (unique_id),
  KEY scoria_operations_owner (owner, state),
  KEY scoria_operations_backend (backend_host, state, lease_until),
  KEY scoria_operations_cluster (cluster, state, lease_until),
  KEY scoria_operations_resource (resource_id, state),
  KEY scoria_operations_closed (state, closed_at)
) ENGINE=InnoDB DEFAULT CHARSET=utf8mb4 COLLATE=utf8mb4_bin;

-- How far an operation is: its own last step (resource_id '') and the last step of each volume.
CREATE TABLE IF NOT EXISTS scoria_operation_steps (
  operation_id BIGINT NOT NULL,
  resource_id VARCHAR(64) NOT NULL,
  step VARCHAR(64) NOT NULL,
  data MEDIUMTEXT NULL,
  epoch BIGINT NOT NULL,
  updated_at DATETIME(6) NOT NULL,
  PRIMARY KEY (operation_id, resource_id)
) ENGINE=InnoDB DEFAULT CHARSET=utf8mb4 COLLATE=utf8mb4_bin;

-- Addresses (nonce included) of our librados clients, so that those of a crashed service can be
-- fenced before their work is taken over.
CREATE TABLE IF NOT EXISTS scoria_rbd_clients (
  site_fsid VARCHAR(36) NOT NULL,
  address VARCHAR(128) NOT NULL,
  owner VARCHAR(36) NOT NULL,
  owner_host VARCHAR(255) NOT NULL,
  pid INT NOT NULL,
  recorded_at DATETIME(6) NOT NULL,
  PRIMARY KEY (site_fsid, address),
  KEY scoria_rbd_clients_owner (owner)
) ENGINE=InnoDB DEFAULT CHARSET=utf8mb4 COLLATE=utf8mb4_bin;

-- One row per transaction, written together with its COMMIT: tells afterwards whether a COMMIT that
-- was never answered took place. Purged after an hour.
CREATE TABLE IF NOT EXISTS scoria_commits (
  id CHAR(36) NOT NULL,
  created_at DATETIME NOT NULL,
  PRIMARY KEY (id),
  KEY scoria_commits_created_at (created_at)
) ENGINE=InnoDB DEFAULT CHARSET=ascii COLLATE=ascii_bin;
