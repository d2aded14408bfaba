#!/usr/bin/env python3
"""Evidence can only be added to: what infra/template.yaml lets a function do to the receipts table and the buckets.

Each rule is also held against a copy of the template with the grant that it forbids: a rule that lets one through fails.
"""

import copy
import fnmatch
import json
import re
import unittest
from pathlib import Path

from cfnlint.decode import cfn_yaml

TEMPLATE = Path(__file__).resolve().parent / "template.yaml"

# All that may be done to the receipts table, spelled out. Puts carry attribute_not_exists: lib/aws/tests/append_only.rs.
RECEIPTS_ALLOWED = {"dynamodb:putitem", "dynamodb:query", "dynamodb:getitem"}
APPENDING = {"EntitlementFunction", "CancelFunction", "PolicyUpgradeFunction", "GovernorFunction", "HealthFunction"}
# A table or bucket of this template. Of anything else nothing that writes or deletes may be allowed.
NAMED = re.compile(r"\$\{\w+(Table|Bucket)\.Arn\}(/.+)?$")
WRITES = ["dynamodb:putitem", "dynamodb:updateitem", "dynamodb:deleteitem", "dynamodb:batchwriteitem",
          "dynamodb:deletetable", "dynamodb:updatetable", "dynamodb:partiqlupdate", "dynamodb:partiqldelete",
          "dynamodb:partiqlinsert", "dynamodb:restoretablefrombackup",
          "s3:putobject", "s3:deleteobject", "s3:deleteobjectversion", "s3:putobjectretention", "s3:abortmultipartupload"]
# What could take away evidence, its lock, or the bucket's protection.
S3_NEVER = ["s3:deleteobjectversion", "s3:bypassgovernanceretention", "s3:deletebucket", "s3:deletebucketpolicy",
            "s3:putbucketpolicy", "s3:putbucketversioning", "s3:putbucketobjectlockconfiguration", "s3:putbucketacl",
            "s3:putlifecycleconfiguration", "s3:putobjectlegalhold", "s3:putobjectacl", "s3:replicateobject",
            "s3:putencryptionconfiguration", "s3:putbucketpublicaccessblock", "s3:putbucketownershipcontrols"]


def plain(node):
    """A copy without cfn-lint's own types."""
    return json.loads(json.dumps(node))


def as_list(value):
    return value if isinstance(value, list) else [value]


def matches(pattern: str, action: str) -> bool:
    return fnmatch.fnmatchcase(action, pattern.lower())


def grants(template):
    """Every statement of every function's role that allows something: (function, sid, actions, resources)."""
    for name, resource in template["Resources"].items():
        if resource["Type"] == "AWS::Serverless::Function":
            policies = as_list(resource["Properties"].get("Policies", []))
        elif resource["Type"] in ("AWS::IAM::Role", "AWS::IAM::Policy", "AWS::IAM::ManagedPolicy"):
            properties = resource["Properties"]
            inline = [p["PolicyDocument"] for p in properties.get("Policies", [])]
            policies = inline + ([properties["PolicyDocument"]] if "PolicyDocument" in properties else [])
            policies += as_list(properties.get("ManagedPolicyArns", []))
        else:
            continue
        for policy in policies:
            if not isinstance(policy, dict) or "Statement" not in policy:
                yield name, f"{policy}", None, None
                continue
            for statement in as_list(policy["Statement"]):
                if statement["Effect"] == "Allow":
                    yield name, statement.get("Sid", "?"), statement.get("Action"), statement.get("Resource")


def text(resource) -> str:
    """A resource as one string: !GetAtt X.Arn is ${X.Arn}."""
    if isinstance(resource, str):
        return resource
    if list(resource) == ["Fn::GetAtt"]:
        return "${" + ".".join(resource["Fn::GetAtt"]) + "}"
    if list(resource) == ["Fn::Sub"] and isinstance(resource["Fn::Sub"], str):
        return resource["Fn::Sub"]
    if list(resource) == ["Ref"]:
        return "${" + resource["Ref"] + "}"
    return json.dumps(resource)


def offences(template) -> list[str]:
    found = []

    def offence(name, sid, what):
        found.append(f"{name}/{sid}: {what}")

    for name, sid, actions, resources in grants(template):
        if actions is None or resources is None:
            # NotAction, NotResource, managed policies and SAM's policy templates: what they allow is not seen here.
            offence(name, sid, "not a plain statement of actions and resources")
            continue
        patterns = as_list(actions)
        allows = lambda action: any(matches(pattern, action) for pattern in patterns)  # noqa: E731
        for pattern in patterns:
            service, _, verb = pattern.lower().partition(":")
            if service in ("*", "dynamodb", "s3") and ("*" in verb or "?" in verb or not verb):
                offence(name, sid, f"{pattern} allows more than it names")
        for action in S3_NEVER:
            if allows(action):
                offence(name, sid, f"allows {action}")
        for pattern in patterns:
            if pattern.lower().startswith("s3:putbucket"):
                offence(name, sid, f"allows {pattern}")
        for resource in map(text, as_list(resources)):
            if not NAMED.match(resource):
                for action in WRITES:
                    if allows(action):
                        offence(name, sid, f"allows {action} of {resource}")
            if resource.startswith("${ReceiptsTable"):
                for pattern in patterns:
                    if pattern.lower() not in RECEIPTS_ALLOWED:
                        offence(name, sid, f"allows {pattern} of {resource}")
            if allows("s3:deleteobject") and resource != "${AuditBucket.Arn}/_spool/*":
                offence(name, sid, f"allows s3:deleteobject of {resource}")
            if allows("dynamodb:putitem") and resource.startswith("${ReceiptsTable") and name not in APPENDING:
                offence(name, sid, "appends receipts")
    return found


class EvidenceStays(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.template = plain(cfn_yaml.load(str(TEMPLATE)))

    def test_no_function_may_take_evidence_away(self):
        self.assertGreater(len(list(grants(self.template))), 40, "the test looks in the wrong place")
        self.assertEqual(offences(self.template), [])

    def altered(self, action, resource, function="HealthFunction", **more):
        template = copy.deepcopy(self.template)
        statement = {"Effect": "Allow", "Action": action, "Resource": resource, **more}
        policies = template["Resources"][function]["Properties"]["Policies"]
        policies[0]["Statement"].append(statement)
        return template

    def test_a_grant_too_many_is_found(self):
        receipts, tenants = {"Fn::GetAtt": ["ReceiptsTable", "Arn"]}, {"Fn::GetAtt": ["TenantsTable", "Arn"]}
        audit = {"Fn::Sub": "${AuditBucket.Arn}/*"}
        for action, resource in [
            ("dynamodb:UpdateItem", receipts),
            (["dynamodb:PutItem", "dynamodb:DeleteItem"], receipts),
            ("dynamodb:BatchWriteItem", [tenants, receipts]),
            ("dynamodb:PartiQLUpdate", receipts),
            ("dynamodb:DeleteTable", receipts),
            ("dynamodb:Put*", receipts),
            ("dynamodb:*", tenants),
            ("DynamoDB:updateitem", {"Fn::Sub": "${ReceiptsTable.Arn}/index/*"}),
            ("*", receipts),
            ("dynamodb:PutItem", "*"),
            ("dynamodb:PutItem", {"Fn::Sub": "arn:${AWS::Partition}:dynamodb:${AWS::Region}:${AWS::AccountId}:*"}),
            ("dynamodb:UpdateItem",
             {"Fn::Sub": "arn:${AWS::Partition}:dynamodb:${AWS::Region}:${AWS::AccountId}:table/*"}),
            ("s3:PutObject", "*"),
            ("s3:*", audit),
            ("s3:Put?bject", audit),
            ("s3:DeleteObject", audit),
            ("s3:DeleteObject", {"Fn::Sub": "${AuditBucket.Arn}/_log/*"}),
            ("s3:DeleteObject", {"Fn::Sub": "${RegistryBucket.Arn}/enforcers/*"}),
            ("s3:DeleteObjectVersion", {"Fn::Sub": "${AuditBucket.Arn}/_spool/*"}),
            ("s3:BypassGovernanceRetention", audit),
            ("s3:PutBucketPolicy", {"Fn::GetAtt": ["AuditBucket", "Arn"]}),
            ("s3:PutBucketVersioning", {"Fn::GetAtt": ["AuditBucket", "Arn"]}),
            ("s3:PutLifecycleConfiguration", {"Fn::GetAtt": ["AuditBucket", "Arn"]}),
        ]:
            with self.subTest(action=action, resource=resource):
                self.assertNotEqual(offences(self.altered(action, resource)), [])
        put_by_another = self.altered("dynamodb:PutItem", receipts, function="CheckpointFunction")
        self.assertNotEqual(offences(put_by_another), [])

    def test_what_cannot_be_seen_through_is_found(self):
        for policy in [
            "AmazonS3FullAccess",
            {"DynamoDBCrudPolicy": {"TableName": {"Ref": "ReceiptsTable"}}},
            {"Statement": [{"Effect": "Allow", "NotAction": "s3:DeleteObject", "Resource": "*"}]},
            {"Statement": {"Effect": "Allow", "Action": "s3:GetObject", "NotResource": "x"}},
        ]:
            template = copy.deepcopy(self.template)
            template["Resources"]["GovernorFunction"]["Properties"]["Policies"].append(policy)
            with self.subTest(policy=policy):
                self.assertNotEqual(offences(template), [])
        role = copy.deepcopy(self.template)
        role["Resources"]["Extra"] = {"Type": "AWS::IAM::Role", "Properties": {"ManagedPolicyArns": ["arn:aws:x"]}}
        self.assertNotEqual(offences(role), [])

    def test_what_holds_evidence_outlives_the_stack(self):
        for name in ("ReceiptsTable", "AuditBucket"):
            self.assertEqual(self.template["Resources"][name]["DeletionPolicy"], "RetainExceptOnCreate", name)
            self.assertEqual(self.template["Resources"][name]["UpdateReplacePolicy"], "Retain", name)
        audit = self.template["Resources"]["AuditBucket"]["Properties"]
        self.assertIs(audit["ObjectLockEnabled"], True)
        # Of the noncurrent versions only the spool's expire; nothing current does.
        for rule in audit["LifecycleConfiguration"]["Rules"]:
            self.assertNotIn("ExpirationInDays", rule)
            if "NoncurrentVersionExpiration" in rule:
                self.assertEqual(rule["Prefix"], "_spool/")


if __name__ == "__main__":
    unittest.main()
