//! The list of gateways that the running hub uses: read at its start, and again when a command or SIGHUP asks.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::watch;

use super::Gateways;
use super::file::ListError;

/// The list in use; clones share it.
#[derive(Debug, Clone)]
pub struct CurrentGateways {
    file: Arc<PathBuf>,
    list: watch::Sender<Arc<Gateways>>,
    /// Two readers at once: the one that read first must not have the last word.
    reading: Arc<Mutex<()>>,
}

impl CurrentGateways {
    /// Reads the list for the first time. Blocks.
    ///
    /// # Errors
    /// [`ListError::Wrong`] names file, line and key.
    pub fn load(file: &Path) -> Result<Self, ListError> {
        let list = Gateways::load(file)?;
        if list.gateways.is_empty() {
            tracing::warn!(file = %file.display(), "The list of gateways is empty");
        }
        log(&list);
        let (list, _) = watch::channel(Arc::new(list));
        Ok(Self { file: Arc::new(file.to_owned()), list, reading: Arc::default() })
    }

    /// The list now.
    #[must_use]
    pub fn get(&self) -> Arc<Gateways> {
        self.list.borrow().clone()
    }

    /// Follows the list: a receiver sees every reload.
    #[must_use]
    pub fn subscribe(&self) -> watch::Receiver<Arc<Gateways>> {
        self.list.subscribe()
    }

    /// Reads the file again. Blocks.
    ///
    /// # Errors
    /// [`ListError`]; the list stays as it was, and the log says so. A file that has vanished is an error here: an
    /// editor's or a copy's gap must not shut out every gateway. So is a lower serial: an older copy would bring
    /// revoked keys back.
    pub fn reload(&self) -> Result<Arc<Gateways>, ListError> {
        let _reading = self.reading.lock().unwrap_or_else(PoisonError::into_inner);
        let read = self.read();
        if let Err(error) = &read {
            let reason = pgw_core::text::chain(error);
            tracing::error!(
                error = reason,
                "The list of gateways cannot be used; the hub keeps the one it has"
            );
        }
        let list = Arc::new(read?);
        log(&list);
        self.list.send_replace(list.clone());
        Ok(list)
    }

    fn read(&self) -> Result<Gateways, ListError> {
        let (file, in_use) = (self.file.as_ref(), self.get());
        if *in_use != Gateways::default() && !file.exists() {
            return Err(ListError::Gone(file.clone()));
        }
        let list = Gateways::load(file)?;
        if list.serial < in_use.serial {
            return Err(ListError::Older { file: file.clone(), serial: list.serial, in_use: in_use.serial });
        }
        Ok(list)
    }
}

/// With the serial, by which an older copy of the list is recognised after a restore.
fn log(list: &Gateways) {
    tracing::info!(
        serial = list.serial,
        gateways = list.gateways.len(),
        without_signing_key = list.without_signing_key().count(),
        "Read the list of gateways"
    );
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::gateways::file::edit;
    use crate::gateways::{ListedGateway, common_name};

    const KEY: &str = "AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8=";

    #[test]
    fn a_list_that_is_wrong_gone_or_older_leaves_the_one_before() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("gateways.toml");
        let current = CurrentGateways::load(&file).unwrap();
        let mut seen = current.subscribe();
        assert_eq!(*current.get(), Gateways::default());
        assert_eq!(current.reload().unwrap().serial, 0, "no list yet is no error");
        seen.mark_unchanged();

        let name = common_name("B86022.gw1").unwrap();
        let add = |list: &mut Gateways| list.add(&name, ListedGateway::default(), KEY.parse().unwrap(), 0);
        edit(&file, directory.path(), add).unwrap();
        assert_eq!(current.reload().unwrap().serial, 1);
        assert!(seen.has_changed().unwrap());
        assert!(seen.borrow_and_update().get(&name.0, &name.1).is_some());

        let good = std::fs::read_to_string(&file).unwrap();
        std::fs::write(&file, good.replace("signing", "signs")).unwrap();
        let error = current.reload().unwrap_err().to_string();
        assert!(error.contains("gateways.toml:") && error.contains("gateway.key.state"), "{error}");
        std::fs::remove_file(&file).unwrap();
        assert!(matches!(current.reload(), Err(ListError::Gone(_))));
        assert!(current.get().get(&name.0, &name.1).is_some() && !seen.has_changed().unwrap());
        std::fs::write(&file, good.replace("serial = 1", "serial = 0")).unwrap();
        assert!(matches!(current.reload(), Err(ListError::Older { serial: 0, in_use: 1, .. })));
        assert!(!seen.has_changed().unwrap());
        std::fs::write(&file, good).unwrap();
        assert_eq!(current.reload().unwrap().serial, 1);
    }
}
