-- Which cluster each site of a backend is, so that a configuration file that has been changed is not taken for one
-- that says the same as before.
CREATE TABLE IF NOT EXISTS scoria_backend_sites (
  -- host@backend, or cluster@backend when clustered
  backend VARCHAR(255) NOT NULL,
  -- 'default' or a backend_id
  site VARCHAR(255) NOT NULL,
  fsid VARCHAR(64) NOT NULL,
  -- the ceph.conf that led there: what tells a site by when it does not answer
  conf VARCHAR(1024) NOT NULL,
  -- a former name: what the site is called since an adoption; '' when it is gone. NULL: the name is in use
  became VARCHAR(255) NULL,
  recorded_at DATETIME(6) NOT NULL,
  PRIMARY KEY (backend, site),
  KEY scoria_backend_sites_fsid (fsid)
) ENGINE=InnoDB DEFAULT CHARSET=utf8mb4 COLLATE=utf8mb4_bin;

-- The last operation that has made a backend's sites what its configuration file says: members of a Cinder cluster
-- that know of an earlier one read theirs again.
CREATE TABLE IF NOT EXISTS scoria_adoptions (
  backend VARCHAR(255) NOT NULL,
  operation_id BIGINT NOT NULL,
  adopted_at DATETIME(6) NOT NULL,
  PRIMARY KEY (backend)
) ENGINE=InnoDB DEFAULT CHARSET=utf8mb4 COLLATE=utf8mb4_bin;
