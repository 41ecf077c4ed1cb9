-- The backends of each host: which are served, from which file, and how they are. Their options are in files only.
CREATE TABLE IF NOT EXISTS scoria_backends (
  -- [DEFAULT] host of the service that serves it
  host VARCHAR(255) NOT NULL,
  -- section, which is the name everywhere
  name VARCHAR(255) NOT NULL,
  -- the service: host@name, or LABEL!host@name
  service VARCHAR(255) NOT NULL,
  -- file: a file of backends.d; main: a section of the service's own files
  origin VARCHAR(16) NOT NULL,
  path VARCHAR(1024) NOT NULL,
  -- SHA-256 of the file, and of the value of each option (JSON), by which two hosts compare what they serve
  checksum VARCHAR(64) NOT NULL,
  fingerprints MEDIUMTEXT NOT NULL,
  -- the Ceph cluster that it works with; NULL: it has not answered yet
  fsid VARCHAR(64) NULL,
  pool VARCHAR(255) NOT NULL,
  -- cluster@name of Cinder
  cluster VARCHAR(255) NULL,
  -- mark: the id of a row of scoria_clusters
  label VARCHAR(64) NULL,
  -- what an operator wants: new (a file that nobody has enabled yet), on, off
  wanted VARCHAR(16) NOT NULL,
  -- creating, new, running, stopped, failed, deleting
  state VARCHAR(16) NOT NULL,
  -- the operation that creates or deletes it
  operation_id BIGINT NULL,
  -- what is wrong, as of now
  problem TEXT NULL,
  created_at DATETIME(6) NOT NULL,
  updated_at DATETIME(6) NOT NULL,
  PRIMARY KEY (host, name),
  KEY scoria_backends_service (service),
  KEY scoria_backends_label (label)
) ENGINE=InnoDB DEFAULT CHARSET=utf8mb4 COLLATE=utf8mb4_bin;

-- Marks of backends (host_cluster_id), which have nothing to do with Cinder's clusters.
CREATE TABLE IF NOT EXISTS scoria_clusters (
  id VARCHAR(64) NOT NULL,
  name VARCHAR(255) NOT NULL,
  description TEXT NULL,
  created_at DATETIME(6) NOT NULL,
  updated_at DATETIME(6) NOT NULL,
  PRIMARY KEY (id),
  UNIQUE KEY scoria_clusters_name (name)
) ENGINE=InnoDB DEFAULT CHARSET=utf8mb4 COLLATE=utf8mb4_bin;
