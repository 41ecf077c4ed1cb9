//! The service's configuration file with its two sites in each other's place: what an operator writes before `adopt`.

use std::fs;
use std::path::PathBuf;

use super::Lab;

/// The service's configuration file, which is as it was when this is dropped.
pub(crate) struct Conf {
    path: PathBuf,
    before: String,
}

impl Conf {
    pub(crate) fn of(lab: &Lab) -> Conf {
        let path = PathBuf::from(&lab.env["SCORIA_CONF"]);
        let before = fs::read_to_string(&path).unwrap();
        Conf { path, before }
    }

    /// What an option of the backend's section says.
    fn option(&self, key: &str) -> String {
        let (_, section) = self.before.split_once("[ceph]\n").unwrap();
        let line = section.lines().find(|l| l.starts_with(key)).unwrap();
        line.split_once('=').unwrap().1.trim().to_owned()
    }

    /// The ceph.conf of the peer.
    pub(crate) fn peer(&self) -> String {
        let device = self.option("replication_device");
        device.split(',').find_map(|pair| pair.strip_prefix("conf:")).unwrap().to_owned()
    }

    /// The backend's own cluster and its peer change places; the peer is called `site-a`.
    pub(crate) fn swap(&self) {
        let (head, section) = self.before.split_once("[ceph]\n").unwrap();
        let own = self.option("rbd_ceph_conf");
        let swapped = section
            .replacen(&format!("rbd_ceph_conf = {own}"), &format!("rbd_ceph_conf = {}", self.peer()), 1)
            .replacen(
                &self.option("replication_device"),
                &format!("backend_id:site-a,conf:{own},user:cinder"),
                1,
            );
        fs::write(&self.path, format!("{head}[ceph]\n{swapped}")).unwrap();
    }

    pub(crate) fn restore(&self) {
        fs::write(&self.path, &self.before).unwrap();
    }
}

impl Drop for Conf {
    fn drop(&mut self) {
        self.restore();
    }
}
