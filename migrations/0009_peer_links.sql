-- Pools of two Ceph clusters that are connected by mirroring. The first cluster sends; with rx-tx both do.
CREATE TABLE IF NOT EXISTS scoria_peer_links (
  fsid_a VARCHAR(36) NOT NULL,
  fsid_b VARCHAR(36) NOT NULL,
  pool VARCHAR(255) NOT NULL,
  -- rx-only: b receives from a; rx-tx: each from the other
  way VARCHAR(16) NOT NULL,
  -- image or pool
  mode VARCHAR(16) NOT NULL,
  -- bootstrap, manual, or found: the peers were there before
  method VARCHAR(16) NOT NULL,
  -- by whom b reaches a, and a reaches b, without 'client.'; NULL: not made by Scoria
  client_a VARCHAR(255) NULL,
  client_b VARCHAR(255) NULL,
  data_pool VARCHAR(255) NULL,
  -- connecting, connected, disconnecting
  state VARCHAR(16) NOT NULL,
  -- pools that connecting has set out to make, as JSON: [[fsid, pool], …]
  makes TEXT NOT NULL,
  -- what came of the canary; of a disconnection, what is left to do
  note VARCHAR(1024) NULL,
  -- the operation that last worked on it
  operation_id BIGINT NOT NULL,
  created_at DATETIME(6) NOT NULL,
  updated_at DATETIME(6) NOT NULL,
  PRIMARY KEY (fsid_a, fsid_b, pool),
  KEY scoria_peer_links_b (fsid_b)
) ENGINE=InnoDB DEFAULT CHARSET=utf8mb4 COLLATE=utf8mb4_bin;
