//! A VMM's messages, one method each; the doing is in `memory.rs` and `vring.rs`.

use std::fs::File;
use std::io;
use std::sync::Arc;

use vhost::vhost_user::message::{
    VhostTransferStateDirection, VhostTransferStatePhase, VhostUserConfigFlags, VhostUserInflight,
    VhostUserLog, VhostUserMemoryRegion, VhostUserProtocolFeatures, VhostUserShMemConfig, VhostUserSharedMsg,
    VhostUserSingleMemoryRegion, VhostUserVringAddrFlags, VhostUserVringState,
};
use vhost::vhost_user::{Error, GpuBackend, VhostUserBackendReqHandlerMut, VhostUserVirtioFeatures};

use super::counters::Counters;
use super::dirty_log::DirtyLog;
use super::inflight::{InflightError, InflightMemory};
use super::options::DeviceOptions;
use super::ring::RingPlace;
use super::state::{TransferError, Transfers};
use super::vring::{StartError, Surroundings, Vring};
use super::{QueueIndex, ring};
use crate::memory::{GuestMap, MEMORY_REGIONS_MAX, Memory, MemoryError, Region, RegionPlace};

/// Writes to guest memory are marked, while a VMM that has a log acknowledges this.
const LOG_ALL: u64 = 1 << 26;
const INDIRECT_DESC: u64 = 1 << 28;
const EVENT_IDX: u64 = 1 << 29;
const VERSION_1: u64 = 1 << 32;
const PROTOCOL_FEATURES: u64 = VhostUserVirtioFeatures::PROTOCOL_FEATURES.bits();
const FEATURES: u64 = LOG_ALL | INDIRECT_DESC | EVENT_IDX | VERSION_1 | PROTOCOL_FEATURES;

/// Bytes of configuration space a VMM may ask for; what is beyond ours reads as zero.
const CONFIG_BYTES_MAX: usize = 256;

type Answer<T> = Result<T, Error>;

/// The base type where a VMM learns nothing of where its memory lies here.
type RegionBase = u64;

/// A message that was understood and could not be followed.
#[derive(Debug, thiserror::Error)]
enum Refusal {
    #[error("there is no queue {0}")]
    NoSuchQueue(u32),
    #[error("{0} was to be changed while it runs")]
    Running(QueueIndex),
    #[error("a ring cannot begin at index {0}")]
    Base(u32),
    #[error("{0} cannot be started: {1}")]
    Start(QueueIndex, StartError),
    #[error("features {0:#x} were acknowledged that were not offered")]
    Features(u64),
    #[error("{0}")]
    Ring(#[from] ring::RingError),
    #[error("{0}")]
    Memory(#[from] MemoryError),
    #[error("{0}")]
    Inflight(#[from] InflightError),
    #[error("{0}")]
    State(#[from] TransferError),
    #[error("{0}")]
    Io(#[from] io::Error),
}

/// What a connected VMM has told us.
pub(crate) struct Connection {
    options: DeviceOptions,
    memory: Arc<Memory>,
    vrings: Vec<Vring>,
    inflight: Option<Arc<InflightMemory>>,
    log: Option<Arc<DirtyLog>>,
    /// What is written to buffers is marked in it.
    logging: bool,
    transfers: Transfers,
    features: u64,
    on_reset: Arc<dyn Fn() + Send + Sync>,
    /// Protocol features were agreed, which is the end of the introduction.
    introduced: bool,
    /// The VMM went on to start the device.
    started: bool,
}

impl Connection {
    pub(crate) fn new(
        options: DeviceOptions,
        surroundings: Surroundings,
        counters: &[Arc<Counters>],
        transfers: Transfers,
    ) -> Connection {
        let vring = |(index, counters): (usize, &Arc<Counters>)| {
            Vring::new(QueueIndex(index as u16), surroundings.clone(), counters.clone())
        };
        Connection {
            options,
            memory: Arc::default(),
            vrings: counters.iter().enumerate().map(vring).collect(),
            inflight: None,
            log: None,
            logging: false,
            transfers,
            features: 0,
            on_reset: Arc::clone(&surroundings.on_reset),
            introduced: false,
            started: false,
        }
    }

    /// The VMM has started its device and shared no memory, without which nothing works.
    ///
    /// Features may be acknowledged early, as part of the introduction, long before there is any memory. When it
    /// is done after the introduction, memory and rings are next.
    pub(crate) fn shares_no_memory(&self) -> bool {
        self.started && self.memory.current().0.is_empty()
    }

    /// Stops every queue, after what was taken has been finished.
    pub(crate) fn stop_all(&mut self) {
        for vring in &mut self.vrings {
            vring.reset();
        }
        self.transfers.reset();
    }

    fn vring(&mut self, index: u32) -> Result<&mut Vring, Refusal> {
        self.vrings.get_mut(index as usize).ok_or(Refusal::NoSuchQueue(index))
    }

    /// A vring whose nature may be changed, because it is not running.
    fn idle_vring(&mut self, index: u32) -> Result<&mut Vring, Refusal> {
        let vring = self.vring(index)?;
        match vring.is_running() {
            true => Err(Refusal::Running(QueueIndex(index as u16))),
            false => Ok(vring),
        }
    }

    fn settle(&mut self, index: u32) -> Result<(), Refusal> {
        if self.vring(index)?.is_about_to_start() {
            self.transfers.allow_start()?;
        }
        let event_idx = self.features & EVENT_IDX != 0;
        let (memory, inflight) = (self.memory.clone(), self.inflight.clone());
        let settled = self.vring(index)?.settle(&memory, inflight.as_deref(), event_idx);
        settled.map_err(|error| Refusal::Start(QueueIndex(index as u16), error))
    }

    fn acknowledge(&mut self, features: u64) -> Result<(), Refusal> {
        if features & !FEATURES != 0 {
            return Err(Refusal::Features(features & !FEATURES));
        }
        self.features = features;
        self.started |= self.introduced;
        self.tell_log();
        // Without the message that enables a ring, a ring is enabled.
        if features & PROTOCOL_FEATURES == 0 {
            self.vrings.iter_mut().for_each(|vring| vring.set_enabled(true));
        }
        Ok(())
    }

    /// A VMM begins and ends to log while the queues run.
    fn tell_log(&mut self) {
        let data = self.features & LOG_ALL != 0;
        let began = !self.logging && data && self.log.is_some();
        self.logging = data && self.log.is_some();
        if began {
            self.transfers.prepare();
        }
        self.vrings.iter_mut().for_each(|vring| vring.set_log(self.log.as_ref(), data));
    }

    fn place_vring(
        &mut self,
        index: u32,
        place: RingPlace,
        used_ring_log: Option<u64>,
    ) -> Result<(), Refusal> {
        if !self.vring(index)?.set_place(place, used_ring_log) {
            return Err(Refusal::Running(QueueIndex(index as u16)));
        }
        self.tell_log();
        Ok(())
    }

    fn replace_memory(&mut self, map: GuestMap) {
        self.memory.replace(map);
        self.vrings.iter().for_each(Vring::nudge);
    }

    fn map_all(&mut self, regions: &[VhostUserMemoryRegion], files: Vec<File>) -> Result<(), Refusal> {
        let mut map = GuestMap::default();
        for (region, file) in regions.iter().zip(files) {
            map = map.with(Region::map(place_of(region), file, region.mmap_offset)?)?;
        }
        self.replace_memory(map);
        Ok(())
    }

    fn map_one(&mut self, region: &VhostUserMemoryRegion, file: File) -> Result<(), Refusal> {
        let region = Region::map(place_of(region), file, region.mmap_offset)?;
        let map = self.memory.current().0.with(region)?;
        self.replace_memory(map);
        Ok(())
    }

    fn unmap_one(&mut self, region: &VhostUserMemoryRegion) -> Result<(), Refusal> {
        let map = self.memory.current().0.without(place_of(region))?;
        self.replace_memory(map);
        Ok(())
    }

    fn configuration(&self, offset: u32, size: u32) -> Option<Vec<u8>> {
        let end = (offset as usize).checked_add(size as usize).filter(|end| *end <= CONFIG_BYTES_MAX)?;
        let mut space = self.options.config_space().to_vec();
        space.resize(CONFIG_BYTES_MAX, 0);
        Some(space[offset as usize..end].to_vec())
    }
}

fn place_of(region: &VhostUserMemoryRegion) -> RegionPlace {
    RegionPlace { guest: region.guest_phys_addr, len: region.memory_size, user: region.user_addr }
}

/// A refusal is logged, told to a VMM that asked for an acknowledgement, and not the end of the connection.
fn answer<T>(message: &str, result: Result<T, Refusal>) -> Answer<T> {
    result.map_err(|refusal| {
        tracing::warn!("{message} of the VMM is refused: {refusal}");
        Error::ReqHandlerError(io::Error::other(refusal))
    })
}

const NOT_OFFERED: Error = Error::InvalidOperation("it belongs to a feature that was not offered");

impl VhostUserBackendReqHandlerMut for Connection {
    fn set_owner(&mut self) -> Answer<()> {
        Ok(())
    }

    fn reset_owner(&mut self) -> Answer<()> {
        self.stop_all();
        Ok(())
    }

    fn reset_device(&mut self) -> Answer<()> {
        self.stop_all();
        self.features = 0;
        (self.on_reset)();
        Ok(())
    }

    fn get_features(&mut self) -> Answer<u64> {
        Ok(FEATURES)
    }

    fn set_features(&mut self, features: u64) -> Answer<()> {
        answer("SET_FEATURES", self.acknowledge(features))
    }

    fn get_protocol_features(&mut self) -> Answer<VhostUserProtocolFeatures> {
        use VhostUserProtocolFeatures as P;
        let config = if self.options.tag.is_some() { P::CONFIG } else { P::empty() };
        let inflight = if self.options.keep_inflight { P::INFLIGHT_SHMFD } else { P::empty() };
        let always = P::MQ | P::REPLY_ACK | P::CONFIGURE_MEM_SLOTS | P::RESET_DEVICE | P::LOG_SHMFD;
        let state = if self.transfers.are_offered() { P::DEVICE_STATE } else { P::empty() };
        Ok(always | config | inflight | state)
    }

    fn set_protocol_features(&mut self, features: u64) -> Answer<()> {
        let unknown = features & !self.get_protocol_features()?.bits();
        let result = if unknown == 0 { Ok(()) } else { Err(Refusal::Features(unknown)) };
        self.introduced = true;
        answer("SET_PROTOCOL_FEATURES", result)
    }

    fn get_queue_num(&mut self) -> Answer<u64> {
        Ok(self.vrings.len() as u64)
    }

    fn set_mem_table(
        &mut self,
        regions: &[VhostUserMemoryRegion],
        files: Vec<File>,
        _postcopy: Option<bool>,
    ) -> Answer<Option<Vec<RegionBase>>> {
        answer("SET_MEM_TABLE", self.map_all(regions, files)).map(|()| None)
    }

    fn get_max_mem_slots(&mut self) -> Answer<u64> {
        Ok(MEMORY_REGIONS_MAX as u64)
    }

    fn add_mem_region(
        &mut self,
        region: &VhostUserSingleMemoryRegion,
        file: File,
        _postcopy: Option<bool>,
    ) -> Answer<Option<RegionBase>> {
        answer("ADD_MEM_REG", self.map_one(region, file)).map(|()| None)
    }

    fn remove_mem_region(&mut self, region: &VhostUserSingleMemoryRegion) -> Answer<()> {
        answer("REM_MEM_REG", self.unmap_one(region))
    }

    fn set_vring_num(&mut self, index: u32, num: u32) -> Answer<()> {
        let size = ring::check_size(num).map_err(Refusal::from);
        let set = size.and_then(|_| self.idle_vring(index).map(|vring| vring.set_size(num)));
        answer("SET_VRING_NUM", set)
    }

    fn set_vring_addr(
        &mut self,
        index: u32,
        flags: VhostUserVringAddrFlags,
        descriptors: u64,
        used: u64,
        available: u64,
        log: u64,
    ) -> Answer<()> {
        self.started = true;
        let place = RingPlace { descriptors, available, used };
        let used_ring_log = flags.contains(VhostUserVringAddrFlags::VHOST_VRING_F_LOG).then_some(log);
        answer("SET_VRING_ADDR", self.place_vring(index, place, used_ring_log))
    }

    fn set_vring_base(&mut self, index: u32, base: u32) -> Answer<()> {
        let base = u16::try_from(base).map_err(|_| Refusal::Base(base));
        let set = base.and_then(|base| self.idle_vring(index).map(|vring| vring.set_base(base)));
        answer("SET_VRING_BASE", set)
    }

    fn get_vring_base(&mut self, index: u32) -> Answer<VhostUserVringState> {
        // There is no way to refuse this in the protocol, so a VMM that asks for nonsense loses its connection.
        let vring = self.vring(index).map_err(|_| Error::InvalidParam)?;
        Ok(VhostUserVringState::new(index, u32::from(vring.unstart())))
    }

    fn set_vring_kick(&mut self, index: u8, fd: Option<File>) -> Answer<()> {
        let index = u32::from(index);
        let set = self.vring(index).map(|vring| vring.set_kick(fd.map(Into::into)));
        answer("SET_VRING_KICK", set.and_then(|()| self.settle(index)))
    }

    fn set_vring_call(&mut self, index: u8, fd: Option<File>) -> Answer<()> {
        let vring = self.vring(u32::from(index));
        answer("SET_VRING_CALL", vring.and_then(|vring| Ok(vring.set_call(fd.map(Into::into))?)))
    }

    fn set_vring_err(&mut self, index: u8, fd: Option<File>) -> Answer<()> {
        let vring = self.vring(u32::from(index));
        answer("SET_VRING_ERR", vring.and_then(|vring| Ok(vring.set_error(fd.map(Into::into))?)))
    }

    fn set_vring_enable(&mut self, index: u32, enable: bool) -> Answer<()> {
        let set = self.vring(index).map(|vring| vring.set_enabled(enable));
        answer("SET_VRING_ENABLE", set.and_then(|()| self.settle(index)))
    }

    fn get_config(&mut self, offset: u32, size: u32, _flags: VhostUserConfigFlags) -> Answer<Vec<u8>> {
        self.configuration(offset, size).ok_or(Error::InvalidParam)
    }

    fn set_config(&mut self, _offset: u32, _bytes: &[u8], _flags: VhostUserConfigFlags) -> Answer<()> {
        Err(Error::ReqHandlerError(io::Error::other("nothing in the configuration space can be written")))
    }

    fn set_gpu_socket(&mut self, _gpu: GpuBackend) -> Answer<()> {
        Err(NOT_OFFERED)
    }

    fn get_shared_object(&mut self, _uuid: VhostUserSharedMsg) -> Answer<File> {
        Err(NOT_OFFERED)
    }

    fn get_inflight_fd(&mut self, wanted: &VhostUserInflight) -> Answer<(VhostUserInflight, File)> {
        // There is no way to refuse this in the protocol either.
        let made = InflightMemory::make(wanted, self.vrings.len()).map_err(Refusal::from);
        answer("GET_INFLIGHT_FD", made).map_err(|_| Error::InvalidParam)
    }

    fn set_inflight_fd(&mut self, kept: &VhostUserInflight, file: File) -> Answer<()> {
        let mapped = InflightMemory::map(kept, file).map_err(Refusal::from);
        answer("SET_INFLIGHT_FD", mapped.map(|memory| self.inflight = Some(Arc::new(memory))))
    }

    fn set_device_state_fd(
        &mut self,
        direction: VhostTransferStateDirection,
        _phase: VhostTransferStatePhase,
        pipe: File,
    ) -> Answer<Option<File>> {
        let running = self.vrings.iter().position(Vring::is_running);
        let stopped = running.map_or(Ok(()), |index| Err(Refusal::Running(QueueIndex(index as u16))));
        let begun = stopped.and_then(|()| Ok(self.transfers.begin(direction, pipe)?));
        answer("SET_DEVICE_STATE_FD", begun).map(|()| None)
    }

    fn check_device_state(&mut self) -> Answer<()> {
        self.transfers.end().map_err(|error| {
            tracing::error!("{error}");
            Error::ReqHandlerError(io::Error::other(error))
        })
    }

    fn get_shmem_config(&mut self) -> Answer<VhostUserShMemConfig> {
        Err(NOT_OFFERED)
    }

    fn set_log_base(&mut self, log: &VhostUserLog, file: File) -> Answer<()> {
        // There is no way to refuse this in the protocol: a VMM that believed in the log would lose what we write.
        let mapped = DirtyLog::map(log.mmap_size, log.mmap_offset, file).map_err(Refusal::from);
        let log = answer("SET_LOG_BASE", mapped).map_err(|_| Error::InvalidParam)?;
        self.log = Some(Arc::new(log));
        self.tell_log();
        Ok(())
    }
}
