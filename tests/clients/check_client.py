"""A Python client of Keystead, as its users would write one: stubs made by grpc_tools from proto/.

    KEYSTEAD_TOKEN=SECRET check_client.py PROTO_FOLDER ADDRESS

Goes the newcomer's way over a plain-text channel and fails at the first step that is not as promised.
Run by tests/it/clients.rs; needs what requirements.txt beside it names.
"""

import os
import pathlib
import sys
import tempfile
import uuid

import grpc
from google.rpc import error_details_pb2
from grpc_status import rpc_status
from grpc_tools import protoc


def make_stubs(proto_folder: pathlib.Path, target: str) -> None:
    """Compiles the contract into `target` and makes it importable."""
    well_known = pathlib.Path(protoc.__file__).parent / "_proto"
    files = sorted(str(path) for path in proto_folder.glob("keystead/v1/*.proto"))
    assert files, f"no contract in {proto_folder}"
    status = protoc.main(
        [
            "protoc",
            f"-I{proto_folder}",
            f"-I{well_known}",
            f"--python_out={target}",
            f"--grpc_python_out={target}",
            *files,
        ]
    )
    assert status == 0, f"protoc ended with {status}"
    sys.path.insert(0, target)


def refusal(call, request, **options) -> tuple[grpc.StatusCode, dict]:
    """Makes a call that must fail; returns its code and its details by message name."""
    try:
        call(request, **options)
    except grpc.RpcError as error:
        status = rpc_status.from_call(error)
        assert status is not None, f"no details: {error}"
        details = {}
        for packed in status.details:
            name = packed.type_url.rsplit(".", 1)[-1]
            details[name] = getattr(error_details_pb2, name)()
            assert packed.Unpack(details[name])
        return error.code(), details
    raise AssertionError("the call succeeded")


def main() -> None:
    proto_folder, address = pathlib.Path(sys.argv[1]), sys.argv[2]
    authorized = {
        "metadata": (("authorization", f"Bearer {os.environ['KEYSTEAD_TOKEN']}"),),
        "timeout": 30,
    }
    with tempfile.TemporaryDirectory() as stubs:
        make_stubs(proto_folder, stubs)
        from keystead.v1 import (
            key_service_pb2,
            key_service_pb2_grpc,
            organization_service_pb2,
            organization_service_pb2_grpc,
        )

        # A proxy that the environment names is not for 127.0.0.1.
        channel = grpc.insecure_channel(address, options=[("grpc.enable_http_proxy", 0)])
        grpc.channel_ready_future(channel).result(timeout=30)
        organizations = organization_service_pb2_grpc.OrganizationServiceStub(channel)
        keys = key_service_pb2_grpc.KeyServiceStub(channel)

        organization = organizations.CreateOrganization(
            organization_service_pb2.CreateOrganizationRequest(
                name="Pythonists", slug="pythonists", email="keys@pythonists.example"
            ),
            **authorized,
        ).organization
        print("created organization", organization.slug)

        create = key_service_pb2.CreateKeyRequest(
            organization_id=organization.id,
            name="from Python",
            environment=key_service_pb2.ENVIRONMENT_TEST,
            scopes=["reports:*"],
            metadata={"team": "reports"},
        )
        create.ttl.FromSeconds(3600)
        created = keys.CreateKey(create, **authorized)
        assert created.secret.startswith("pk_test_") and len(created.secret) == 51
        assert created.key.hint == created.secret[-4:]
        lifetime = created.key.expire_time.ToDatetime() - created.key.create_time.ToDatetime()
        assert abs(lifetime.total_seconds() - 3600) < 1, lifetime
        print("created key", created.key.id)

        verify = key_service_pb2.VerifyKeyRequest(secret=created.secret)
        verify.required_scopes.all_of.append("reports:read")
        verified = keys.VerifyKey(verify, **authorized)
        assert verified.outcome == key_service_pb2.OUTCOME_VALID, verified.outcome
        assert verified.key_id == created.key.id
        assert dict(verified.metadata) == {"team": "reports"}
        print("verified: VALID")

        revoked = keys.RevokeKey(
            key_service_pb2.RevokeKeyRequest(
                key_id=created.key.id, reason=key_service_pb2.REVOCATION_REASON_SUPERSEDED
            ),
            **authorized,
        )
        assert revoked.key.status == key_service_pb2.KEY_STATUS_REVOKED
        verified = keys.VerifyKey(verify, **authorized)
        assert verified.outcome == key_service_pb2.OUTCOME_REVOKED, verified.outcome
        print("verified: REVOKED")

        listed = keys.ListKeys(
            key_service_pb2.ListKeysRequest(organization_id=organization.id), **authorized
        )
        assert [key.id for key in listed.keys] == [created.key.id]
        print("listed", len(listed.keys), "key")

        code, details = refusal(
            keys.GetKey, key_service_pb2.GetKeyRequest(key_id=str(uuid.uuid4())), **authorized
        )
        assert code == grpc.StatusCode.NOT_FOUND, code
        assert details["ErrorInfo"].domain == "keystead"
        print("an unknown key is refused:", details["ErrorInfo"].reason)

        code, details = refusal(
            keys.ListKeys,
            key_service_pb2.ListKeysRequest(organization_id="no UUID", page_size=-1),
            **authorized,
        )
        assert code == grpc.StatusCode.INVALID_ARGUMENT, code
        fields = {violation.field for violation in details["BadRequest"].field_violations}
        assert {"organization_id", "page_size"} <= fields, fields
        print("bad fields are named:", ", ".join(sorted(fields)))

        code, details = refusal(
            keys.GetKey, key_service_pb2.GetKeyRequest(key_id=created.key.id), timeout=30
        )
        assert code == grpc.StatusCode.UNAUTHENTICATED, code
        assert details["ErrorInfo"].domain == "keystead"
        print("a call without a credential is refused")
        channel.close()
    print("all steps passed")


if __name__ == "__main__":
    main()
