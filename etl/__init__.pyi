from etl.commands.library import connect as connect
from etl.commands.library import load_config as load_config
from etl.commands.library import plan as plan
from etl.commands.library import run as run
from etl.commands.library import run_async as run_async
from etl.commands.library import status as status
from etl.commands.library import verify as verify
from etl.commands.result import RunResult as RunResult
from etl.commands.result import Status as Status
from etl.config import Config as Config
from etl.errors import AuthError as AuthError
from etl.errors import ContractError as ContractError
from etl.errors import EtlError as EtlError
from etl.errors import GuardError as GuardError
from etl.errors import Interrupted as Interrupted
from etl.errors import PublishConflict as PublishConflict
from etl.errors import SinkError as SinkError
from etl.errors import SourceUnavailable as SourceUnavailable
from etl.errors import TargetCorrupt as TargetCorrupt
from etl.errors import TargetLocked as TargetLocked
from etl.errors import Terminated as Terminated
from etl.errors import UnprovenError as UnprovenError
from etl.errors import UsageError as UsageError
from etl.model import Progress as Progress

__version__: str
