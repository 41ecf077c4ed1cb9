-- The Ceph clusters that Scoria knows. A cluster is its fsid; the name is the operator's word for it.
CREATE TABLE IF NOT EXISTS scoria_sites (
  fsid VARCHAR(36) NOT NULL,
  name VARCHAR(64) NOT NULL,
  -- registered: by an operator; found: where the conf of a backend leads
  origin VARCHAR(16) NOT NULL,
  -- as last seen: what mon_host of a ceph.conf says, one monitor a line; oldest release; HEALTH_…
  monitors TEXT NOT NULL,
  version VARCHAR(64) NOT NULL,
  health VARCHAR(32) NOT NULL,
  -- checks, pools and what was found of the client's capabilities, as JSON
  report MEDIUMTEXT NOT NULL,
  seen_at DATETIME(6) NOT NULL,
  created_at DATETIME(6) NOT NULL,
  updated_at DATETIME(6) NOT NULL,
  PRIMARY KEY (fsid),
  UNIQUE KEY scoria_sites_name (name)
) ENGINE=InnoDB DEFAULT CHARSET=utf8mb4 COLLATE=utf8mb4_bin;

-- By which files each host reaches a site.
CREATE TABLE IF NOT EXISTS scoria_site_hosts (
  fsid VARCHAR(36) NOT NULL,
  -- [DEFAULT] host of the service
  host VARCHAR(255) NOT NULL,
  conf TEXT NOT NULL,
  -- NULL: none was found (a site without cephx)
  keyring TEXT NULL,
  -- cephx user without 'client.'
  client VARCHAR(255) NULL,
  -- 1: Scoria wrote the files, and removes them with the site
  own TINYINT(1) NOT NULL,
  -- present; removing: the site was deleted, and this host's service removes the files
  state VARCHAR(16) NOT NULL,
  -- what is wrong with the files, when they were last looked at
  problem VARCHAR(255) NULL,
  checked_at DATETIME(6) NOT NULL,
  PRIMARY KEY (fsid, host)
) ENGINE=InnoDB DEFAULT CHARSET=utf8mb4 COLLATE=utf8mb4_bin;

-- Which backends work with a site: written by each service as it finds out where their conf leads.
CREATE TABLE IF NOT EXISTS scoria_site_uses (
  -- host@backend
  backend VARCHAR(255) NOT NULL,
  -- 'default' or a backend_id
  site VARCHAR(255) NOT NULL,
  fsid VARCHAR(36) NOT NULL,
  pool VARCHAR(255) NOT NULL,
  client VARCHAR(255) NULL,
  recorded_at DATETIME(6) NOT NULL,
  PRIMARY KEY (backend, site),
  KEY scoria_site_uses_fsid (fsid)
) ENGINE=InnoDB DEFAULT CHARSET=utf8mb4 COLLATE=utf8mb4_bin;
