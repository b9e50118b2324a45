"""One program in every language that has a grammar here."""

import pytest

from linearize.decoding.repetition.languages import LANGUAGES, parser
from linearize.errors import InputError

PROGRAMS = {
    "python": '''import os


class A(B):
    """Words."""

    x: int = 1

    @property
    def f(self, *a, **k):
        # a comment
        for i in range(10):
            if i == 1 and not a:
                return [i, "x", {"k": 2}]
            elif i:
                continue
            else:
                k[i] = lambda y: y + 1
        try:
            with open("a") as g:
                pass
        except (OSError, ValueError) as e:
            raise e
''',
    "go": """package main

import "fmt"

type T struct {
\ta int
\tb string
}

func (t *T) f(x int) (int, error) {
\t// a comment
\tfor i := 0; i < 10; i++ {
\t\tif x == i {
\t\t\treturn i, nil
\t\t} else if x > 1 {
\t\t\tfmt.Println(`raw \\`, []int{1, 2})
\t\t}
\t}
\tswitch x {
\tcase 1:
\t\tdefer f(2)
\tdefault:
\t}
\treturn 0, nil
}
""",
    "java": """package a;

import java.util.List;

public class A extends B {
  private int x = 1;

  /** Words. */
  public int f(String s, int... a) throws E {
    for (int i = 0; i < 10; i++) {
      if (a[i] == 1) { return i; }
      else if (s.equals("x")) { continue; }
      else { g('c', new int[] {1, 2}); }
    }
    switch (x) { case 1: return 2; default: break; }
    return 0;
  }
}
""",
    "javascript": """import a from "b";

class A extends B {
  f(x, ...y) {
    // a comment
    for (const i of y) {
      if (i === 1) { return [1, 2]; }
      else if (i) { g(`a ${i}`, /["(]/g); }
      else { h({ k: 1, l: 'm' }); }
    }
    switch (x) { case 1: break; default: z(); }
    return (x) => x / 2;
  }
}
""",
    "typescript": """import { a } from "b";

interface I { x: number; y?: string }
enum E { A, B }

export class A<T> implements I {
  private x: number = 1;
  f(a: T, b: string[]): number {
    /* a comment */
    if (a) { return 1; }
    else if (b.length > 1) { g(<any>b as I); }
    return { x: 1 }.x;
  }
}
""",
    "c": """#include <a.h>
#define X 1

struct s { int a; char *b; };
enum e { A, B };

int f(int x, char *y) {
  /* a comment */
  int a[] = {1, 2, 3};
  for (int i = 0; i < X; i++) {
    if (x == i) { return a[i]; }
    else if (y[0] == '(') { printf("%d", x); }
    else { continue; }
  }
  switch (x) { case 1: break; default: return 2; }
  return 0;
}
""",
    "cpp": """#include <a>
namespace n {
template <class T> class A : public B {
 public:
  A(int x) : x_(x) {}
  int f(const T& a) {
    // a comment
    std::vector<int> v = {1, 2};
    for (auto& i : v) {
      if (i == 1) { return i; }
      else if (a) { std::cout << "x" << 'c'; }
    }
    return [&](int y) { return y; }(1);
  }
 private:
  int x_;
};
}
""",
    "rust": """use a::b;

struct S<'a> { x: &'a str, y: i32 }

impl<'a> S<'a> {
    fn f(&self, z: Option<i32>) -> i32 {
        // a comment
        let v = vec![1, 2];
        for i in 0..10 {
            if i == 1 { return i; } else if i > 2 { g('(', "x"); } else { continue; }
        }
        match z { Some(1) => h(), _ => { k(); } }
        v[0]
    }
}
""",
}


def _row(language):
    try:
        parser(language)
    except InputError as error:
        return pytest.param(language, marks=pytest.mark.skip(reason=str(error)))
    return language


every_language = pytest.mark.parametrize("language", [_row(name) for name in LANGUAGES])
