-- Schedules of backups that are for all volumes of a type: those rows of scoria_backup_schedules name neither volume nor
-- group. A table of its own, because a column cannot be added in a way that may be repeated.
CREATE TABLE IF NOT EXISTS scoria_backup_type_schedules (
  schedule_id VARCHAR(36) NOT NULL,
  volume_type_id VARCHAR(36) NOT NULL,
  PRIMARY KEY (schedule_id)
) ENGINE=InnoDB DEFAULT CHARSET=utf8mb4 COLLATE=utf8mb4_bin;
