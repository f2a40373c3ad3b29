//! Watches: who gets which change, in which order.
//!
//! One thread, the `Hub`, owns every registration. The writer gives it each committed changeset before it answers the
//! writers; clients' requests travel in the same mailbox, so whatever a client does after its write was acknowledged is
//! seen after that write. A watcher is either *live* (gets changes as they are published) or *behind* from some revision
//! (is fed from history by `catch_up` until it is live again). A slow stream falls behind alone: nobody waits for it.
//!
//! Events, control answers and progress of a stream share one ordered queue, so progress never overtakes an event.

mod catch_up;
mod event;
mod handle;
mod hub;
mod index;
mod memory;
mod queue;
mod recent;

pub use event::{Frame, Item};
pub use handle::{HubHandle, Publisher, Stream};
pub use hub::{Create, Hub};
pub use memory::Memory;
pub use queue::Queue;
