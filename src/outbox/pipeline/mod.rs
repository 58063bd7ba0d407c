//! From a submission to a record behind the barrier, and back out for delivery.
//!
//! Data below, behaviour above; each imports only from those before it:
//! - [`jobs`]: the threads' requests to each other; [`admission`], [`space`], [`latency`], [`trash`]: the disk, and the clock
//! - [`handles`], [`lane`], [`pending`]: one lane, its open databases, a record before its barrier; [`acceptance_times`]
//! - [`shared`]: the state that all threads share
//! - [`rebuild`]: carves the records of a damaged segment into a new one
//! - [`records`], [`read`]: reading as stored, and with voids; [`digests`]: what proves it; [`release`]: writing off lost records
//! - [`duplicates`]: repetitions, decided by comparing
//! - [`lane_writer`], [`writer`]: the only thread that appends, in groups
//! - [`durable_digests`]: what is synced before a tail checkpoint
//! - [`fsync_worker`], [`segment_worker`], [`maintenance`]: the threads beside it
//! - [`startup`]: from the files on the disk to running threads; [`running`]: until they stop

pub(crate) mod acceptance_times;
pub(crate) mod admission;
pub(crate) mod digests;
pub(crate) mod duplicates;
pub(crate) mod durable_digests;
pub(crate) mod fsync_worker;
pub(crate) mod handles;
pub(crate) mod jobs;
pub(crate) mod lane;
pub(crate) mod lane_writer;
pub(crate) mod latency;
pub(crate) mod maintenance;
pub(crate) mod pending;
pub(crate) mod read;
pub(crate) mod rebuild;
pub(crate) mod records;
pub(crate) mod release;
pub(crate) mod running;
pub(crate) mod segment_worker;
pub(crate) mod shared;
pub(crate) mod space;
pub(crate) mod startup;
pub(crate) mod trash;
pub(crate) mod writer;
