#!/usr/bin/env python3
"""Evidence can only be added to: what infra/template.yaml lets a function do to receipts tables and buckets, and that
nothing it allows reaches beyond this stack.

Each rule is also held against a copy of the template with the grant that it forbids: a rule that lets one through fails.
"""

import copy
import json
import re
import unittest
from pathlib import Path

from cfnlint.decode import cfn_yaml

TEMPLATE = Path(__file__).resolve().parent / "template.yaml"

# All that may be done to a receipts table, spelled out. Puts carry attribute_not_exists: lib/domain/tests/sources/append_only.rs.
RECEIPTS_ALLOWED = {"dynamodb:putitem", "dynamodb:query", "dynamodb:getitem"}
ACTIONS_ALLOWED = {"dynamodb:batchgetitem", "dynamodb:putitem", "dynamodb:query"}
APPENDING = {"EntitlementFunction", "CancelFunction", "PolicyUpgradeFunction", "GovernorFunction", "HealthFunction",
             "ScaleFunction", "SignalsFunction"}
# A tenant's own tables come and go: who may do what to them as a whole. The stack's own tables only CloudFormation may.
MAKING, ENDING = {"EntitlementFunction"}, {"EntitlementFunction", "CancelFunction"}
TABLE_ALLOWED = {"dynamodb:createtable": MAKING, "dynamodb:updatecontinuousbackups": MAKING,
                 "dynamodb:deletetable": ENDING, "dynamodb:describetable": ENDING | {"HealthFunction"}}
ITEMS = re.compile(r"dynamodb:(\w+item|query)")

# All that a statement may name: what this template makes, and what the functions make in this stack's name.
OF_ACCOUNT = r"arn:\$\{AWS::Partition\}:%s:\$\{AWS::Region\}:\$\{AWS::AccountId\}:"
OF_STACK = r"\$\{AWS::StackName\}"
MADE_HERE = re.compile(r"\$\{\w+(\.Arn)?\}(/.+)?")
STACK_TABLE = re.compile(r"\$\{\w+Table\.Arn\}(/.+)?")
RECEIPTS_TABLE = re.compile(r"\$\{ReceiptsTable\.Arn\}(/.+)?")
OWN = OF_ACCOUNT % "dynamodb" + "table/" + OF_STACK + r"-t-\*-"
BY_ID = "(/index/by-receipt-id)?"
OWN_TABLE = re.compile(OWN + f"(actions|receipts{BY_ID})")
OWN_RECEIPTS = re.compile(OWN + "receipts" + BY_ID)
OWN_QUEUE = re.compile(OF_ACCOUNT % "sqs" + OF_STACK + r"-t-\*(-dlq)?")
OWN_DEAD_LETTERS = re.compile(OF_ACCOUNT % "sqs" + OF_STACK + r"-t-\*-dlq")
# Who may take messages of tenants, and who may only look at those that nobody could settle.
TAKING, LOOKING = {"GovernorFunction", "CancelFunction"}, {"HealthFunction"}
OWN_FUNCTION = re.compile(OF_ACCOUNT % "lambda" + "function:" + OF_STACK + r"-[\w-]+")
# A mapping's name says nothing of its stack; MAPPING_CONDITION keeps these to the governor's.
ANY_MAPPING = re.compile(OF_ACCOUNT % "lambda" + r"event-source-mapping:\*")
MAPPING_ACTIONS = {"lambda:createeventsourcemapping", "lambda:deleteeventsourcemapping",
                   "lambda:geteventsourcemapping", "lambda:updateeventsourcemapping"}
MAPPING_CONDITION = {"ArnEquals": {"lambda:FunctionArn": {"Fn::GetAtt": ["GovernorFunction", "Arn"]}}}
# For these IAM knows no resource.
WITHOUT_RESOURCE = {"dynamodb:listtables", "sqs:listqueues", "lambda:listeventsourcemappings",
                    "lambda:createeventsourcemapping"}
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


def grants(template):
    """Every statement of every function's role that allows something: (function, sid, statement)."""
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
                yield name, f"{policy}", {}
                continue
            for statement in as_list(policy["Statement"]):
                if statement["Effect"] == "Allow":
                    yield name, statement.get("Sid", "?"), statement


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


def reaches_no_further_than(action: str, resource: str) -> bool:
    """Whether a resource is this stack's, as far as IAM can say it of this action."""
    if resource == "*":
        return action in WITHOUT_RESOURCE
    if MADE_HERE.fullmatch(resource):
        return True
    own = {"dynamodb": OWN_TABLE, "sqs": OWN_QUEUE, "lambda": OWN_FUNCTION}.get(action.partition(":")[0])
    if action in MAPPING_ACTIONS:
        own = ANY_MAPPING
    return own is not None and own.fullmatch(resource) is not None


def table_may(function: str, action: str, resource: str) -> bool:
    """Whether a function may do this to what is a table; of anything else, true."""
    own, receipts = OWN_TABLE.fullmatch(resource), OWN_RECEIPTS.fullmatch(resource) or RECEIPTS_TABLE.fullmatch(resource)
    if own and action in TABLE_ALLOWED:
        return function in TABLE_ALLOWED[action]
    if receipts:
        return action in RECEIPTS_ALLOWED and (action != "dynamodb:putitem" or function in APPENDING)
    if own:
        return action in ACTIONS_ALLOWED
    return not STACK_TABLE.fullmatch(resource) or ITEMS.fullmatch(action) is not None


def queue_may(function: str, action: str, resource: str) -> bool:
    """Whether a function may do this to what is a tenant's queue; of anything else, true."""
    if not OWN_QUEUE.fullmatch(resource) or function in TAKING:
        return True
    if action == "sqs:receivemessage":
        return function in LOOKING and OWN_DEAD_LETTERS.fullmatch(resource) is not None
    return action not in ("sqs:deletemessage", "sqs:purgequeue", "sqs:changemessagevisibility")


def offences(template) -> list[str]:
    found = []

    def offence(name, sid, what):
        found.append(f"{name}/{sid}: {what}")

    for name, sid, statement in grants(template):
        if "Action" not in statement or "Resource" not in statement:
            # NotAction, NotResource, managed policies and SAM's policy templates: what they allow is not seen here.
            offence(name, sid, "not a plain statement of actions and resources")
            continue
        actions = [action.lower() for action in as_list(statement["Action"])]
        resources = [text(resource) for resource in as_list(statement["Resource"])]
        for action in actions:
            if not re.fullmatch(r"\w+:\w+", action):
                offence(name, sid, f"{action} allows more than it names")
            if action in S3_NEVER or action.startswith("s3:putbucket"):
                offence(name, sid, f"allows {action}")
            if action in MAPPING_ACTIONS and statement.get("Condition") != MAPPING_CONDITION:
                offence(name, sid, f"allows {action} of other functions' mappings")
            for resource in resources:
                if not reaches_no_further_than(action, resource):
                    offence(name, sid, f"{action} of {resource} reaches beyond the stack")
                if not table_may(name, action, resource) or not queue_may(name, action, resource):
                    offence(name, sid, f"allows {action} of {resource}")
                if action == "s3:deleteobject" and resource != "${AuditBucket.Arn}/_spool/*":
                    offence(name, sid, f"allows {action} of {resource}")
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

    def test_a_grant_to_another_function_is_found(self):
        stack = "arn:${AWS::Partition}:%s:${AWS::Region}:${AWS::AccountId}:"
        table, lambdas = stack % "dynamodb" + "table/${AWS::StackName}-t-*-", stack % "lambda"
        actions, receipts = {"Fn::Sub": table + "actions"}, {"Fn::Sub": table + "receipts"}
        shared, tenants = {"Fn::GetAtt": ["ReceiptsTable", "Arn"]}, {"Fn::GetAtt": ["TenantsTable", "Arn"]}
        mappings = {"Fn::Sub": lambdas + "event-source-mapping:*"}
        for function, action, resource in [
            ("CheckpointFunction", "dynamodb:PutItem", shared),
            ("CheckpointFunction", "dynamodb:PutItem", receipts),
            ("EntitlementFunction", "dynamodb:DeleteTable", shared),
            ("EntitlementFunction", "dynamodb:DescribeTable", shared),
            ("EntitlementFunction", "dynamodb:UpdateTable", receipts),
            ("EntitlementFunction", "dynamodb:UpdateItem", receipts),
            ("CancelFunction", "dynamodb:DeleteItem", receipts),
            ("CancelFunction", "dynamodb:BatchWriteItem", [actions, receipts]),
            ("CancelFunction", "dynamodb:PartiQLDelete", receipts),
            ("CancelFunction", "dynamodb:UpdateItem", actions),
            ("CancelFunction", "dynamodb:CreateTable", receipts),
            ("CancelFunction", "dynamodb:UpdateContinuousBackups", receipts),
            ("CancelFunction", "dynamodb:DeleteTable", tenants),
            ("GovernorFunction", "dynamodb:DeleteTable", actions),
            ("HealthFunction", "dynamodb:DeleteTable", receipts),
            ("PolicyUpgradeFunction", "dynamodb:DescribeTable", receipts),
            ("CancelFunction", "dynamodb:Query", {"Fn::Sub": stack % "dynamodb" + "table/*"}),
            ("CancelFunction", "dynamodb:Query", {"Fn::Sub": stack % "dynamodb" + "table/*-receipts"}),
            ("CancelFunction", "dynamodb:Query", {"Fn::Sub": stack % "dynamodb" + "table/${AWS::StackName}*"}),
            ("HealthFunction", "dynamodb:DescribeTable", "*"),
            ("HealthFunction", "sqs:GetQueueAttributes", "*"),
            ("HealthFunction", "sqs:SendMessage", {"Fn::Sub": stack % "sqs" + "*"}),
            ("HealthFunction", "sqs:*", {"Fn::Sub": stack % "sqs" + "${AWS::StackName}-t-*"}),
            ("HealthFunction", ["sqs:ListQueues", "sqs:DeleteQueue"], "*"),
            ("HealthFunction", "sqs:ReceiveMessage", {"Fn::Sub": stack % "sqs" + "${AWS::StackName}-t-*"}),
            ("HealthFunction", "sqs:DeleteMessage", {"Fn::Sub": stack % "sqs" + "${AWS::StackName}-t-*-dlq"}),
            ("ScaleFunction", "sqs:ReceiveMessage", {"Fn::Sub": stack % "sqs" + "${AWS::StackName}-t-*-dlq"}),
            ("HealthFunction", "lambda:InvokeFunction", "*"),
            ("HealthFunction", "lambda:InvokeFunction", {"Fn::Sub": lambdas + "function:*"}),
            ("HealthFunction", "secretsmanager:GetSecretValue", "*"),
            ("EntitlementFunction", "lambda:CreateEventSourceMapping", "*"),
            ("EntitlementFunction", "lambda:DeleteEventSourceMapping", mappings),
            ("ScaleFunction", "lambda:UpdateEventSourceMapping", mappings),
            ("ScaleFunction", "dynamodb:UpdateItem", receipts),
            ("SignalsFunction", "dynamodb:UpdateItem", shared),
            ("SignalsFunction", "dynamodb:DeleteTable", actions),
            ("SignalsFunction", "dynamodb:BatchWriteItem", {"Fn::Sub": table + "receipts/index/by-receipt-id"}),
            ("SignalsFunction", "dynamodb:Query", {"Fn::Sub": table + "receipts/index/*"}),
            ("SignalsFunction", "sqs:SendMessage", {"Fn::Sub": stack % "sqs" + "*"}),
        ]:
            with self.subTest(function=function, action=action, resource=resource):
                self.assertNotEqual(offences(self.altered(action, resource, function=function)), [])

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


class DeadLettersStay(unittest.TestCase):
    """Whoever may put signals on tenants' queues may not put them among the dead letters."""

    def test_producers_are_denied(self):
        resources = plain(cfn_yaml.load(str(TEMPLATE)))["Resources"]
        for document in (resources["ProducerPolicy"]["Properties"]["PolicyDocument"],
                         resources["SignalsFunction"]["Properties"]["Policies"][0]):
            denied = [s for s in document["Statement"] if s["Effect"] == "Deny" and s["Action"] == "sqs:SendMessage"]
            self.assertEqual(len(denied), 1)
            self.assertRegex(text(denied[0]["Resource"]), OWN_DEAD_LETTERS)


class OutputsAreTheEnvironment(unittest.TestCase):
    """A function that runs alone, and ggen, take their whole environment from the stack's outputs."""

    # What has a default of its own, and who calls AWS.
    OWN = {"RUST_LOG", "AWS_SDK_UA_APP_ID"}

    def test_every_variable_is_an_output(self):
        template = plain(cfn_yaml.load(str(TEMPLATE)))
        of_all = template["Globals"]["Function"].get("Environment", {}).get("Variables", {})
        functions = [r["Properties"] for r in template["Resources"].values() if r["Type"] == "AWS::Serverless::Function"]
        variables = {name for f in functions for name in f.get("Environment", {}).get("Variables", {})} | set(of_all)
        outputs = {re.sub(r"(?<!^)(?=[A-Z])", "_", name).upper() for name in template["Outputs"]}
        self.assertGreater(len(variables), 20)
        self.assertEqual(variables - outputs - self.OWN, set())


class Alarms(unittest.TestCase):
    """Each function that can escalate an action, or turn a customer's event away, is heard."""

    def heard(self, metric):
        template = plain(cfn_yaml.load(str(TEMPLATE)))
        alarms = [r["Properties"] for r in template["Resources"].values() if r["Type"] == "AWS::CloudWatch::Alarm"]
        return {a["Dimensions"][0]["Value"] for a in alarms if a["MetricName"] == metric}

    def test_all_are_heard(self):
        functions = TEMPLATE.parent.parent / "functions"
        for metric, one in [("action_escalated", "governor"), ("delivery_refused", "entitlement"),
                            ("delivery_turned_away", "entitlement"), ("receipt_lost", "governor")]:
            counted = re.compile(rf'count\(\s*"(\w+)",\s*"{metric}"')
            telling = {name for source in functions.rglob("*.rs") for name in counted.findall(source.read_text())}
            self.assertIn(one, telling)
            self.assertEqual(telling, self.heard(metric), metric)

    def test_a_secret_that_cannot_be_used_is_heard(self):
        # Both functions that take webhooks count it, in lib/aws/src/webhooks.rs.
        self.assertEqual(self.heard("webhook_secret_unusable"), {"entitlement", "cancel"})


class StacksComeAndGo(unittest.TestCase):
    """A stack can be deployed where one was deleted, and in an account that is new."""

    def setUp(self):
        self.template = plain(cfn_yaml.load(str(TEMPLATE)))
        functions = self.template["Resources"].values()
        self.functions = [r["Properties"] for r in functions if r["Type"] == "AWS::Serverless::Function"]

    def test_no_function_brings_a_log_group_back(self):
        denial = {"Effect": "Deny", "Action": "logs:CreateLogGroup", "Resource": "*"}
        for function in self.functions:
            statements = [s for policy in function["Policies"] for s in policy["Statement"]]
            self.assertIn(denial, [{k: v for k, v in s.items() if k != "Sid"} for s in statements], function["Description"])
            self.assertIn("LogGroup", function["LoggingConfig"])

    def test_concurrency_is_reserved_only_if_wanted(self):
        reserved = [f["ReservedConcurrentExecutions"] for f in self.functions if "ReservedConcurrentExecutions" in f]
        self.assertEqual({one["Fn::If"][0] for one in reserved}, {"ReservesConcurrency"})
        self.assertEqual({json.dumps(one["Fn::If"][2]) for one in reserved}, {'{"Ref": "AWS::NoValue"}'})
        wanted = {"Fn::And": [{"Condition": "IsProduction"}, {"Fn::Equals": [{"Ref": "ReserveConcurrency"}, "true"]}]}
        self.assertEqual(self.template["Conditions"]["ReservesConcurrency"], wanted)
        # As the parameter's description and docs/deploying.md say.
        self.assertEqual(sum(one["Fn::If"][1] for one in reserved), 21)


class CallsFitIntoAnInvocation(unittest.TestCase):
    """A call of a handler (500 ms), its rollback at its longest, and then time to commit what became of them."""

    def test_the_longest_rollback_fits(self):
        template = plain(cfn_yaml.load(str(TEMPLATE)))
        budget = template["Parameters"]["RollbackBudgetMs"]
        timeout = template["Resources"]["GovernorFunction"]["Properties"]["Timeout"] * 1000
        self.assertLessEqual(500 + int(budget["MaxValue"]) + 4000, timeout)
        self.assertLessEqual(int(budget["MinValue"]), int(budget["Default"]))
        self.assertLessEqual(int(budget["Default"]), int(budget["MaxValue"]))


class StackNamesFit(unittest.TestCase):
    """The longest stack name that Lambda allows is the one that names of tenants' queues reckon with."""

    def test_the_longest_function_name_decides(self):
        resources = plain(cfn_yaml.load(str(TEMPLATE)))["Resources"].values()
        names = [text(r["Properties"]["FunctionName"]) for r in resources if r["Type"] == "AWS::Serverless::Function"]
        longest = max(len(name.replace("${AWS::StackName}", "")) for name in names)
        source = (TEMPLATE.parent.parent / "lib" / "domain" / "src" / "names.rs").read_text()
        self.assertEqual(re.findall(r"MAX_PREFIX: usize = (\d+);", source), [str(64 - longest)])


if __name__ == "__main__":
    unittest.main()
