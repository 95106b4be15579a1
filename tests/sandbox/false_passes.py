"""Wrong programs that try to pass tests by another way than being right, by name; ``test_unittests`` and ``test_fakes``
run them. Kinds: the test machinery replaced, skipped or patched, at import, within a call or by a thread; tests swapped;
the runner called; verdicts forged; and, where tests have a process of their own, the interpreter's memory searched."""

# ruff: noqa: E501 (programs stand on one line)

WRONG = "def task_func(x):\n    return x\n"
_CALL = "def task_func(x):\n"
_NOTHING = "lambda *a, **k: None"


def _in_call(*lines: str) -> str:
    return _CALL + "".join(f"    {line}\n" for line in lines) + "    return x\n"


_SUBCLASS = f"type('TestCase', (unittest.TestCase,), {{'assertEqual': {_NOTHING}, 'assertTrue': {_NOTHING}, '__module__': 'unittest.case'}})"

# The kinds that must not pass, whatever process the tests run in.
FAKES = {
    "unittest.TestCase replaced by a subclass": f"{WRONG}import unittest\nunittest.TestCase = {_SUBCLASS}",
    "unittest.case.TestCase replaced by a subclass": f"{WRONG}import unittest, unittest.case\nunittest.TestCase = unittest.case.TestCase = {_SUBCLASS}",
    "sys.modules holds another unittest": f"{WRONG}import sys, types, unittest\nfake = types.ModuleType('unittest')\nfake.__dict__.update(vars(unittest))\nfake.TestCase = {_SUBCLASS}\nsys.modules['unittest'] = fake",
    "TestCase is marked as skipped": f"{WRONG}import unittest\nunittest.TestCase.__unittest_skip__ = True",
    "TestCase is marked as skipped within a call": _in_call(
        "import unittest", "unittest.TestCase.__unittest_skip__ = True"
    ),
    "TestCase is expected to fail": f"{WRONG}import unittest\nunittest.TestCase.__unittest_expecting_failure__ = True",
    "failureException is SkipTest": f"{WRONG}import unittest\nunittest.TestCase.failureException = unittest.SkipTest",
    "failureException is SkipTest within a call": _in_call(
        "import unittest", "unittest.TestCase.failureException = unittest.SkipTest"
    ),
    "SkipTest from code that bears the tests' name": "exec(compile('def task_func(x):\\n    import unittest\\n    raise unittest.SkipTest', 'tests.py', 'exec'))",
    "SkipTest without a frame of the program": "import _asyncio, asyncio, unittest, functools\nloop = asyncio.new_event_loop()\nf = loop.create_future()\nf.set_exception(unittest.SkipTest('today'))\ntask_func = lambda x: functools.partial(f.result)()",
    "SkipTest found among the subclasses": "def task_func(x):\n    raise next(c for c in Exception.__subclasses__() if c.__name__ == 'SkipTest')('today')",
    "every SkipTest found is raised, without a frame": "import _asyncio, asyncio\nloop = asyncio.new_event_loop()\nf = loop.create_future()\nf.set_exception([c for c in Exception.__subclasses__() if c.__name__ == 'SkipTest'][0]('today'))\ntask_func = type('F', (), {'__call__': staticmethod(lambda x: f.result())})()",
    "the runner's check is replaced": f"{WRONG}import __main__\n__main__.changed = lambda *a: ''\nimport unittest\nunittest.TestCase.assertEqual = unittest.TestCase.assertTrue = {_NOTHING}",
    "every function of the runner is replaced": f"{WRONG}import __main__, types\nfor name, value in list(vars(__main__).items()):\n    if isinstance(value, types.FunctionType): setattr(__main__, name, {_NOTHING})",
    "the runner's result class passes all": f"{WRONG}import __main__\nfor value in list(vars(__main__).values()):\n    if isinstance(value, type) and hasattr(value, 'addFailure'): value.addFailure = value.addError = value.addSuccess",
    "contextlib swallows what tests raise": f"{WRONG}import contextlib\nold = contextlib._GeneratorContextManager.__exit__\ndef leave(self, *error):\n    try: old(self, None, None, None)\n    except BaseException: pass\n    return True\ncontextlib._GeneratorContextManager.__exit__ = leave",
    "contextlib is replaced in unittest.case": f"{WRONG}import unittest.case, types, contextlib\nunittest.case.contextlib = types.SimpleNamespace(contextmanager=lambda f: lambda *a, **k: contextlib.nullcontext(), **{{'suppress': contextlib.suppress}})",
    "_Outcome swallows what tests raise": f"{WRONG}import unittest.case, contextlib\nclass O(unittest.case._Outcome):\n    def testPartExecutor(self, *a, **k): return contextlib.suppress(BaseException)\nunittest.case._Outcome = O",
    "builtins.__import__ replaced for one import": f"{WRONG}import builtins, unittest, types\nold = builtins.__import__\ndef load(name, *rest, **more):\n    if name != 'unittest': return old(name, *rest, **more)\n    builtins.__import__ = old\n    fake = types.ModuleType('unittest')\n    fake.__dict__.update(vars(unittest))\n    fake.TestCase = {_SUBCLASS}\n    return fake\nbuiltins.__import__ = load",
    "builtins.__build_class__ replaced for one class": f"{WRONG}import builtins\nold = builtins.__build_class__\ndef build(body, name, *bases, **more):\n    if name != 'TestCases': return old(body, name, *bases, **more)\n    builtins.__build_class__ = old\n    return type(name, bases, {{'test_small': lambda s: 0, 'test_large': lambda s: 0, '__module__': '__test__'}})\nbuiltins.__build_class__ = build",
    "a finder serves another unittest": f"{WRONG}import sys, types, unittest, importlib.machinery as m\nkept = dict(vars(unittest))\nclass Finder:\n    def find_spec(self, name, path=None, target=None):\n        return m.ModuleSpec(name, self) if name == 'unittest' else None\n    def create_module(self, spec): return None\n    def exec_module(self, module):\n        module.__dict__.update({{k: v for k, v in kept.items() if not k.startswith('__')}})\n        module.TestCase = {_SUBCLASS}\nsys.meta_path.insert(0, Finder())\ndel sys.modules['unittest']",
    "a thread swaps the tests' methods": f"{WRONG}import sys, threading\ndef swap():\n    while True:\n        cases = getattr(sys.modules['__test__'], 'TestCases', None)\n        if cases: cases.test_small = cases.test_large = lambda self: None\nthreading.Thread(target=swap, daemon=True).start()",
    "a thread swaps assertions": f"{WRONG}import threading, unittest\ndef swap():\n    while True: unittest.TestCase.assertEqual = unittest.TestCase.assertTrue = {_NOTHING}\nthreading.Thread(target=swap, daemon=True).start()",
    "a call swaps assertions that undo it": _in_call(
        "import unittest",
        "C = unittest.TestCase",
        "kept = C.assertEqual, C.assertTrue",
        "def undo(*a): C.assertEqual, C.assertTrue = kept",
        "C.assertEqual = C.assertTrue = undo",
    ),
    "a call swaps assertions of the tests' class": _in_call(
        "import sys",
        "cases = getattr(sys.modules['__test__'], 'TestCases', None)",
        "if cases: cases.assertEqual = cases.assertTrue = lambda *a: delattr(cases, 'assertEqual')",
    ),
    "a call swaps the class of the tests": _in_call(
        "import unittest",
        "for c in unittest.TestCase.__subclasses__(): c.assertEqual = c.assertTrue = lambda *a, **k: None",
    ),
    "a signal swaps assertions": f"{WRONG}import signal, unittest\ndef swap(*a): unittest.TestCase.assertEqual = unittest.TestCase.assertTrue = {_NOTHING}\nsignal.signal(signal.SIGALRM, swap)\nsignal.setitimer(signal.ITIMER_REAL, 0.0001, 0.0001)",
    "a finalizer swaps assertions": "import unittest\nclass F(int):\n    def __del__(self): unittest.TestCase.assertEqual = unittest.TestCase.assertTrue = lambda *a: None\ndef task_func(x): return F(x)",
    "an exit handler says all is well": f"{WRONG}import atexit, os\natexit.register(print, 'OK')\nos._exit(0)",
    "loading goes on in the background": f"import threading, time, unittest\n{WRONG}def later():\n    time.sleep(0.02)\n    unittest.TestCase.run = lambda self, result=None: result.addSuccess(self)\nthreading.Thread(target=later).start()",
    "TestCase.run reports success": f"{WRONG}import unittest\nunittest.TestCase.run = unittest.TestCase.__call__ = lambda self, result=None: (result.startTest(self), result.addSuccess(self), result.stopTest(self))",
    "suites run nothing": f"{WRONG}import unittest.suite\nunittest.TestSuite.run = unittest.BaseTestSuite.run = lambda self, result, debug=False: result",
    "loaders find nothing": f"{WRONG}import unittest.loader\nunittest.TestLoader.getTestCaseNames = lambda *a: []",
    "safe_repr raises SkipTest": f"{WRONG}import unittest, unittest.case, unittest.util\ndef skip(*a): raise unittest.SkipTest\nunittest.util.safe_repr = unittest.case.safe_repr = unittest.case._common_shorten_repr = skip",
    "AssertionError is another class": f"{WRONG}import builtins\nbuiltins.AssertionError = type('AssertionError', (Exception,), {{}})",
    "the code of an assertion is replaced": f"{WRONG}import unittest\nnothing = lambda self, *a, **k: None\nfor name in ('assertEqual', 'assertTrue', 'fail', '_baseAssertEqual'):\n    getattr(unittest.TestCase, name).__code__ = nothing.__code__\n    getattr(unittest.TestCase, name).__kwdefaults__ = None",
    "the type functions of TestCase are replaced": f"{WRONG}import unittest\ninit = unittest.TestCase.__init__\ndef make(self, *a):\n    init(self, *a)\n    self._type_equality_funcs = {{}}\n    self.assertEqual = self.assertTrue = {_NOTHING}\nunittest.TestCase.__init__ = make",
    "a metaclass hides the tests": f"{WRONG}import unittest\nunittest.TestCase.__init_subclass__ = classmethod(lambda cls, **k: [setattr(cls, n, lambda self: None) for n in list(vars(cls)) if n.startswith('test')])",
    "traces go on past an assertion": f"{WRONG}import sys, threading\ndef trace(frame, event, arg):\n    if frame.f_code.co_name.startswith('test_') and event == 'line':\n        try: frame.f_lineno = max(l for *_, l in frame.f_code.co_lines() if l)\n        except (ValueError, TypeError): pass\n    return trace\nthreading.settrace(trace)\nsys.settrace(trace)",
}

# Open where program and tests share a process; closed where they do not.
MEMORY = {
    "equal to everything": "class Same:\n    def __eq__(self, other): return True\n    def __ne__(self, other): return False\n    def __bool__(self): return True\n    __hash__ = None\ndef task_func(x): return Same()",
    "expected values read from frames": "import sys\ndef task_func(x):\n    frame = sys._getframe(1)\n    return next((c for c in frame.f_code.co_consts if isinstance(c, int) and c not in (0, x)), 10**6 + 1)",
    "the secret read from frames": f"import sys, os\n{WRONG}frame, found = sys._getframe(), None\nwhile frame:\n    for value in list(frame.f_locals.values()):\n        if callable(value) and getattr(value, '__closure__', None):\n            cells = [c.cell_contents for c in value.__closure__]\n            if any(isinstance(c, str) and len(c) == 32 for c in cells):\n                for name in ('test_small', 'test_large'): value(name, 'passed', '')\n                value('', 'done', '')\n                os._exit(0)\n    frame = frame.f_back",
    "results found by gc": _in_call(
        "import gc",
        "for o in gc.get_objects():",
        "    if type(o).__name__ == 'Outcomes': type(o).addFailure = type(o).addError = lambda self, test, err: self.addSuccess(test)",
    ),
    "functions found by gc": _in_call(
        "import gc, types",
        "for o in gc.get_objects():",
        "    if isinstance(o, types.FunctionType) and o.__name__ in ('assertEqual', 'assertTrue'): o.__code__ = (lambda *a: None).__code__",
    ),
    "tests found by gc": _in_call(
        "import gc, types",
        "for o in gc.get_objects():",
        "    if isinstance(o, types.FunctionType) and o.__name__ in ('test_small', 'test_large'): o.__code__ = (lambda self: None).__code__",
    ),
    "the callers' globals": _in_call(
        "import sys",
        "frame = sys._getframe(1)",
        "frame.f_globals['task_func'] = lambda x: x + 1",
        "return x + 1 if x < 9 else x",
    ),
}

# The tests' process, from the program's.
NEIGHBOUR = {
    "the tests' memory": f"import os\n{WRONG}for place in ('mem', 'environ', 'maps'):\n    try: open(f'/proc/{{os.getppid()}}/{{place}}', 'rb').close()\n    except OSError: continue\n    def task_func(x): return x + 1",
    "the tests' descriptors": f"import os, sys\nsys.path.insert(0, '/program')\n{WRONG}for pid in (os.getppid(), *range(1, 50)):\n    try: names = os.listdir(f'/proc/{{pid}}/fd')\n    except OSError: continue\n    if pid == os.getpid(): continue\n    for name in names:\n        try:\n            with open(f'/proc/{{pid}}/fd/{{name}}', 'wb') as f: f.write(b'x ' * 99)\n        except OSError: pass",
    "the tests' process is ended": f"import os\n{WRONG}os.kill(os.getppid(), 9)",
    "the tests' process is stopped": f"import os, signal\n{WRONG}os.kill(os.getppid(), signal.SIGTERM)",
    "an answer of its own on every descriptor": f"import os\n{WRONG}for fd in range(3, 64):\n    try: os.write(fd, (20).to_bytes(8, 'big') + b'\\x80\\x04\\x88.' + b' ' * 16)\n    except OSError: pass",
    "an answer that is code": "import os, pickle, struct\nclass Bad:\n    def __reduce__(self): return (exec, ('import os; os._exit(0)',))\ndef task_func(x): return Bad()",
    "an answer that imports": "class Bad:\n    def __reduce__(self): return (__import__, ('antigravity',))\ndef task_func(x): return [Bad()]",
    "an exception that equals": "class E(ValueError):\n    def __init__(self, *a): raise SystemExit\ndef task_func(x): raise E.__new__(E)",
    "the answer of a forked child": "import os\ndef task_func(x):\n    os.fork()\n    return x",
    "the environment of the tests": "import os\ndef task_func(x):\n    os.environ['PYTHONSTARTUP'] = os.environ['PYTHONPATH'] = os.environ['LD_PRELOAD'] = '/tmp/x'\n    return x",
    "an import in the place of a function": "from unittest import expectedFailure as task_func",
    "a SkipTest of another module": "import test.support\ndef task_func(x): raise test.support.ResourceDenied",
}
