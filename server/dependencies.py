"""What routes ask for: the services, the caller's project, and a transaction."""

from collections.abc import Iterator
from typing import Annotated

from fastapi import Depends, Request, Security
from fastapi.security import HTTPBearer
from sqlalchemy.orm import Session

from server.keys.service import Principal
from server.services import Services

bearer = HTTPBearer(auto_error=False, description="A key of this service: sk-…")
"""For the documentation; the key itself is checked by `server.keys.guard`."""
READING = frozenset({"GET", "HEAD"})


def get_services(request: Request) -> Services:
    """The running service's parts."""
    services: Services = request.app.state.services
    return services


def get_principal(request: Request, _: Annotated[object, Security(bearer)]) -> Principal:
    """Who asks; there is always one behind the guard."""
    principal: Principal = request.state.principal
    return principal


ServicesDep = Annotated[Services, Depends(get_services)]
ProjectDep = Annotated[Principal, Depends(get_principal)]


def get_session(request: Request, services: ServicesDep) -> Iterator[Session]:
    """The request's transaction, committed when the route returns and before the answer leaves."""
    database = services.database
    with database.reading() if request.method in READING else database.writing() as session:
        yield session


SessionDep = Annotated[Session, Depends(get_session, scope="function")]
