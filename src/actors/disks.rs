//! The setting of where disks lie, in the words of the box.

use crate::config;
use crate::sandbox::DiskStore;

impl From<config::DiskStore> for DiskStore {
    fn from(setting: config::DiskStore) -> Self {
        match setting {
            config::DiskStore::Files => Self::Files,
            config::DiskStore::Pool => Self::Pool,
            config::DiskStore::PoolXfs => Self::PoolXfs,
            config::DiskStore::PoolBtrfs => Self::PoolBtrfs,
        }
    }
}
