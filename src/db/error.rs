//! Which database errors are worth another try?
//!
//! diesel-async hands on only the *text* of a server error, so the codes that matter (1213, 1205,
//! 1047 and those of a lost connection) are recognised by their English sentences; every connection
//! asks the server for English (`db::connection`). All of that knowledge is in [`classify`], and
//! tests/db.rs provokes the real errors, so a driver that changes its texts is noticed.

use diesel::result::{DatabaseErrorKind, Error as DieselError};

use crate::error::{Code, Error};

/// What to do about a failed statement.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Failure {
    /// The server rolled the transaction back, or would do so later: run it again.
    Again,
    /// The connection is gone or useless: get another one and run it again.
    Lost,
    /// A row with this key exists.
    Duplicate,
    /// It would fail again.
    Final,
}

impl Failure {
    /// True when the whole transaction may be run again.
    pub fn is_retryable(self) -> bool {
        match self {
            Failure::Again | Failure::Lost => true,
            Failure::Duplicate | Failure::Final => false,
        }
    }
}

/// Server texts after which the same transaction may succeed.
const AGAIN: &[&str] = &[
    // 1213, at a statement or (Galera: certification failure) at COMMIT
    "Deadlock found when trying to get lock",
    "WSREP detected deadlock/conflict",
    "WSREP replication failed",
    // 1205
    "Lock wait timeout exceeded",
    // 1020, MariaDB 11.6+ with innodb_snapshot_isolation
    "Record has changed since last read",
    // 1317, a brute-force abort or KILL QUERY
    "Query execution was interrupted",
    // 1615, the table changed under a prepared statement (`cinder-manage db sync`)
    "Prepared statement needs to be re-prepared",
    // 3101, group replication
    "Plugin instructed the server to rollback the current transaction",
];

/// Server and driver texts after which this connection must not be used any more.
const LOST: &[&str] = &[
    // 1047: a Galera node that is not (yet, any more) part of the primary component
    "WSREP has not yet prepared node for application use",
    "Unknown command",
    // 1053, 1077, 1927, 1184, 1152, 4031
    "Server shutdown in progress",
    "Normal shutdown",
    "Connection was killed",
    "Aborted connection",
    "Forced close of thread",
    "disconnected by the server because of inactivity",
    // 1158-1161
    "communication packets",
    "Got timeout writing",
    // 1243: a proxy moved us to another server
    "Unknown prepared statement handler",
    // 1290, 1792: a primary that was demoted; the address will lead to the new one
    "--read-only option",
    "READ ONLY transaction",
    // 1040: somebody else will let go
    "Too many connections",
    // mysql_async
    "Input/output error",
    "Connection to the server is closed",
    "Packet out of order",
    "Unexpected packet",
    "Pool was disconnected",
];

/// Decides what a diesel error means. Its enums are `non_exhaustive`, so the last arms say "final":
/// what nobody thought of is not repeated.
pub fn classify(error: &DieselError) -> Failure {
    match error {
        DieselError::DatabaseError(kind, info) => match kind {
            DatabaseErrorKind::UniqueViolation => Failure::Duplicate,
            DatabaseErrorKind::ForeignKeyViolation
            | DatabaseErrorKind::NotNullViolation
            | DatabaseErrorKind::CheckViolation
            | DatabaseErrorKind::ExclusionViolation
            | DatabaseErrorKind::RestrictViolation => Failure::Final,
            DatabaseErrorKind::SerializationFailure => Failure::Again,
            DatabaseErrorKind::ClosedConnection
            | DatabaseErrorKind::ReadOnlyTransaction
            | DatabaseErrorKind::UnableToSendCommand => Failure::Lost,
            DatabaseErrorKind::Unknown => classify_text(info.message()),
            _ => classify_text(info.message()),
        },
        // The transaction manager saw an error it could not roll back: the connection is unusable.
        DieselError::BrokenTransactionManager => Failure::Lost,
        DieselError::RollbackErrorOnCommit { rollback_error, .. } => classify(rollback_error),
        DieselError::NotFound
        | DieselError::InvalidCString(_)
        | DieselError::QueryBuilderError(_)
        | DieselError::DeserializationError(_)
        | DieselError::SerializationError(_)
        | DieselError::RollbackTransaction
        | DieselError::AlreadyInTransaction
        | DieselError::NotInTransaction => Failure::Final,
        _ => Failure::Final,
    }
}

fn classify_text(text: &str) -> Failure {
    if LOST.iter().any(|needle| text.contains(needle)) {
        Failure::Lost
    } else if AGAIN.iter().any(|needle| text.contains(needle)) {
        Failure::Again
    } else {
        Failure::Final
    }
}

/// What to do about an error that a transaction's closure returned; `Final` for everything that did
/// not come from the database.
pub fn failure(error: &Error) -> Failure {
    let mut cause = std::error::Error::source(error);
    while let Some(c) = cause {
        if let Some(diesel) = c.downcast_ref::<DieselError>() {
            return classify(diesel);
        }
        cause = c.source();
    }
    Failure::Final
}

/// True when a unique key refused the row.
pub fn is_duplicate(error: &DieselError) -> bool {
    classify(error) == Failure::Duplicate
}

impl From<DieselError> for Error {
    fn from(error: DieselError) -> Self {
        Error::new(Code::Database, "The database did not accept a change; try again or ask the operator")
            .caused_by(error)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn server(text: &str) -> Error {
        DieselError::DatabaseError(DatabaseErrorKind::Unknown, Box::new(text.to_owned())).into()
    }

    #[test]
    fn known_texts_are_recognised_and_others_are_final() {
        for (text, expected) in [
            ("Deadlock found when trying to get lock; try restarting transaction", Failure::Again),
            ("Lock wait timeout exceeded; try restarting transaction", Failure::Again),
            ("WSREP has not yet prepared node for application use", Failure::Lost),
            ("Input/output error: Input/output error: connection reset by peer", Failure::Lost),
            ("Driver error: `Connection to the server is closed.'", Failure::Lost),
            ("Connection was killed", Failure::Lost),
            ("Unknown column 'x' in 'field list'", Failure::Final),
            ("Data too long for column 'display_name' at row 1", Failure::Final),
        ] {
            assert_eq!(failure(&server(text)), expected, "{text}");
        }
    }

    #[test]
    fn an_error_of_our_own_is_never_repeated() {
        assert_eq!(
            failure(&Error::new(Code::Conflict, "deadlock found when trying to get lock")),
            Failure::Final
        );
        assert!(!Failure::Duplicate.is_retryable());
    }
}
