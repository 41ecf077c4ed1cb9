-- How many backups of a volume are kept, where that is set for the volume itself and not by its type.
CREATE TABLE IF NOT EXISTS scoria_backup_retention (
  volume_id VARCHAR(36) NOT NULL,
  -- NULL: none are kept for this reason
  keep_last INT NULL,
  keep_daily INT NULL,
  keep_weekly INT NULL,
  keep_monthly INT NULL,
  -- of the IANA database: where a day begins
  time_zone VARCHAR(64) NOT NULL,
  created_at DATETIME(6) NOT NULL,
  updated_at DATETIME(6) NOT NULL,
  PRIMARY KEY (volume_id)
) ENGINE=InnoDB DEFAULT CHARSET=utf8mb4 COLLATE=utf8mb4_bin;

-- When backups are made without anybody asking. Times are UTC.
CREATE TABLE IF NOT EXISTS scoria_backup_schedules (
  id VARCHAR(36) NOT NULL,
  name VARCHAR(255) NULL,
  -- one of the two
  volume_id VARCHAR(36) NULL,
  group_id VARCHAR(36) NULL,
  cron VARCHAR(255) NOT NULL,
  -- of the IANA database: what the hours of the cron line mean
  time_zone VARCHAR(64) NOT NULL,
  -- each nth backup is a full one; 1: all are, 0: only the first
  full_every INT NOT NULL,
  -- runs since the last full one
  since_full INT NOT NULL,
  -- retention is applied after each run
  retention TINYINT(1) NOT NULL,
  -- pool of the backups; NULL: where they usually go
  container VARCHAR(255) NULL,
  paused TINYINT(1) NOT NULL,
  -- whoever changes it from what is due has taken that run; NULL: none is due
  next_run DATETIME(6) NULL,
  last_run DATETIME(6) NULL,
  last_operation BIGINT NULL,
  last_outcome TEXT NULL,
  created_at DATETIME(6) NOT NULL,
  updated_at DATETIME(6) NOT NULL,
  PRIMARY KEY (id),
  KEY scoria_backup_schedules_due (paused, next_run)
) ENGINE=InnoDB DEFAULT CHARSET=utf8mb4 COLLATE=utf8mb4_bin;
